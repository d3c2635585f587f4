// 4-bit weights of two-level scales in groups of 128, int8 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w4a8_two_level(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                         cudaStream_t stream) {
  constexpr LinearFormat kFormat = LinearFormat::kW4A8TwoLevel;
  if (tokens == 32)
    launch_wide<kFormat, 32, true>(args, p, sms, stream);
  else if (tokens == 64)
    launch_wide<kFormat, 64, true>(args, p, sms, stream);
  else if (tokens == 128)
    launch_wide<kFormat, 128, true>(args, p, sms, stream);
  else
    launch_wide<kFormat, 256, true>(args, p, sms, stream);
}

}  // namespace whit::cuda
