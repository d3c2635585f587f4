// AMX linears of int8_channel weights and int8 activations, on the panels of avx512/linear_w8a8, by
// the passes of int8_passes.h. The same bits as there: integer sums are exact. Few rows go there
// altogether.
#include "kernels/cpu/amx/int8_passes.h"

namespace whit::cpu {

constinit const LinearKernel kAmxLinearW8A8 = {
    .name = "amx/linear_w8a8",
    .format = WeightFormat::kInt8Channel,
    .activation = Activation::kInt8,
    .isa = Isa::kAmx,
    .packed_bytes = packed_bytes<WeightFormat::kInt8Channel>,
    .pack = pack_panels<WeightFormat::kInt8Channel>,
    .scratch_bytes = scratch_bytes<Codes::kInt8, kAvx512LinearW8A8>,
    .run = run<Codes::kInt8, kAvx512LinearW8A8>};

}  // namespace whit::cpu
