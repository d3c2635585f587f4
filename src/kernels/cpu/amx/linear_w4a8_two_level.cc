// AMX linears of int4_group weights of two-level scales and int8 activations, on the panels of
// avx512/linear_w4a8_two_level, by the passes of int8_passes.h. The same bits as there: integer
// sums are exact. Few rows go there altogether.
#include "kernels/cpu/amx/int8_passes.h"

namespace whit::cpu {

constinit const LinearKernel kAmxLinearW4A8TwoLevel = {
    .name = "amx/linear_w4a8_two_level",
    .format = WeightFormat::kInt4Group,
    .activation = Activation::kInt8,
    .isa = Isa::kAmx,
    .packed_bytes = packed_bytes_two_level,
    .pack = pack_panels_two_level,
    .scratch_bytes = scratch_bytes<Codes::kTwoLevel, kAvx512LinearW4A8TwoLevel>,
    .run = run<Codes::kTwoLevel, kAvx512LinearW4A8TwoLevel>,
    .two_level = true};

}  // namespace whit::cpu
