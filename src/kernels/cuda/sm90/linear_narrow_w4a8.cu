// 4-bit weights in groups of 128, int8 activations.
#include "kernels/cuda/sm90/linear_narrow.cuh"

namespace whit::cuda {

void narrow_w4a8(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream) {
  if (args.weight.zero_points)
    launch_narrow<LinearFormat::kW4A8, true>(args, p, stream);
  else
    launch_narrow<LinearFormat::kW4A8, false>(args, p, stream);
}

}  // namespace whit::cuda
