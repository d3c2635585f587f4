// 4-bit weights in groups of 128, bf16 activations.
#include "kernels/cuda/sm90/linear_narrow.cuh"

namespace whit::cuda {

void narrow_w4a16(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream) {
  launch_narrow<LinearFormat::kW4A16, true>(args, p, stream);
}

}  // namespace whit::cuda
