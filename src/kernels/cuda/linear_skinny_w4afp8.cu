// 4-bit weights, e4m3 activations: both widened to f16, exactly, for its products are of twice the
// precision of e4m3's sums on Hopper, where mma.sync has no others.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w4afp8(const SkinnyParams& p, bool zero_points, cudaStream_t stream) {
  launch_skinny_int4<LinearFormat::kW4AFp8>(p, zero_points, stream);
}

}  // namespace whit::cuda
