// 4-bit weights of two-level scales in groups of 128, int8 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w4a8_two_level(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                         cudaStream_t stream) {
  launch_wide<LinearFormat::kW4A8TwoLevel, true>(args, p, tokens, sms, stream);
}

}  // namespace whit::cuda
