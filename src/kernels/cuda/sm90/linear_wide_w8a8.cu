// 8-bit weights with a scale a row, int8 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w8a8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
               cudaStream_t stream) {
  constexpr LinearFormat kFormat = LinearFormat::kW8A8;
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
