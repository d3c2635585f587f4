// 4-bit weights, e4m3 activations: both widened to f16, exactly, for its products are of twice the
// precision of e4m3's sums on Hopper, where mma.sync has no others. Groups of 32 and 64 look codes
// up by their zero points always: one instance.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w4afp8(const SkinnyParams& p, bool zero_points, cudaStream_t stream) {
  constexpr LinearFormat kFormat = LinearFormat::kW4AFp8;
  if (p.layout.groups == 4)
    launch_skinny<kFormat, true, 4>(p, stream);
  else if (zero_points)
    launch_skinny<kFormat, true, 1>(p, stream);
  else
    launch_skinny<kFormat, false, 1>(p, stream);
}

}  // namespace whit::cuda
