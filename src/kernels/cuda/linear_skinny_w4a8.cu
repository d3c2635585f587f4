// 4-bit weights, int8 activations. Groups of 32 and 64 subtract zero points always: one instance.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w4a8(const SkinnyParams& p, bool zero_points, cudaStream_t stream) {
  constexpr LinearFormat kFormat = LinearFormat::kW4A8;
  if (p.layout.groups == 4)
    launch_skinny<kFormat, true, 4>(p, stream);
  else if (zero_points)
    launch_skinny<kFormat, true, 1>(p, stream);
  else
    launch_skinny<kFormat, false, 1>(p, stream);
}

void skinny_w4a8_two_level(const SkinnyParams& p, cudaStream_t stream) {
  launch_skinny<LinearFormat::kW4A8TwoLevel, true, 1>(p, stream);
}

}  // namespace whit::cuda
