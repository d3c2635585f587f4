// 4-bit weights of two-level scales, int8 activations.
#include "kernels/cuda/sm90/linear_narrow.cuh"

namespace whit::cuda {

void narrow_w4a8_two_level(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream) {
  launch_narrow<LinearFormat::kW4A8TwoLevel, true>(args, p, stream);
}

}  // namespace whit::cuda
