// 4-bit weights in groups of 128, bf16 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w4a16(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                cudaStream_t stream) {
  launch_wide<LinearFormat::kW4A16, true>(args, p, tokens, sms, stream);
}

}  // namespace whit::cuda
