// 4-bit weights in groups of 128, e4m3 activations.
#include "kernels/cuda/sm90/linear_wide.cuh"

namespace whit::cuda {

void wide_w4afp8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                 cudaStream_t stream) {
  if (args.weight.zero_points)
    launch_wide<LinearFormat::kW4AFp8, true>(args, p, tokens, sms, stream);
  else
    launch_wide<LinearFormat::kW4AFp8, false>(args, p, tokens, sms, stream);
}

}  // namespace whit::cuda
