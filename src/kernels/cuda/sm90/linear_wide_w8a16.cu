// 8-bit weights with a scale a row, bf16 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w8a16(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                cudaStream_t stream) {
  launch_wide<LinearFormat::kW8A16, true>(args, p, tokens, sms, stream);
}

}  // namespace whit::cuda
