// 4-bit weights, int8 activations.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w4a8(const SkinnyParams& p, bool zero_points, cudaStream_t stream) {
  launch_skinny_int4<LinearFormat::kW4A8>(p, zero_points, stream);
}

void skinny_w4a8_two_level(const SkinnyParams& p, cudaStream_t stream) {
  launch_skinny<LinearFormat::kW4A8TwoLevel, true, 1>(p, stream);
}

}  // namespace whit::cuda
