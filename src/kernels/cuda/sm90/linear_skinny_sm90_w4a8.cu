// 4-bit weights in groups of 128, int8 activations.
#include "kernels/cuda/sm90/linear_skinny_sm90.cuh"

namespace whit::cuda {

void stream_w4a8(const StreamParams& p, bool zero_points, int units, int room,
                 cudaStream_t stream) {
  if (zero_points)
    launch_stream<LinearFormat::kW4A8, true>(p, units, room, stream);
  else
    launch_stream<LinearFormat::kW4A8, false>(p, units, room, stream);
}

}  // namespace whit::cuda
