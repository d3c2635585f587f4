// 4-bit weights, bf16 activations.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w4a16(const SkinnyParams& p, cudaStream_t stream) {
  constexpr LinearFormat kFormat = LinearFormat::kW4A16;
  if (p.layout.groups == 4)
    launch_skinny<kFormat, true, 4>(p, stream);
  else
    launch_skinny<kFormat, true, 1>(p, stream);
}

}  // namespace whit::cuda
