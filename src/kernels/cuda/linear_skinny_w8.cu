// int8 weights, int8 or bf16 activations.
#include "kernels/cuda/linear_skinny.cuh"

namespace whit::cuda {

void skinny_w8(const SkinnyParams& p, LinearFormat format, cudaStream_t stream) {
  if (format == LinearFormat::kW8A8)
    launch_skinny<LinearFormat::kW8A8, true, 0>(p, stream);
  else
    launch_skinny<LinearFormat::kW8A16, true, 0>(p, stream);
}

}  // namespace whit::cuda
