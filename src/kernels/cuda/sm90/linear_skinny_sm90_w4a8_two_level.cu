// 4-bit weights of two-level scales, int8 activations.
#include "kernels/cuda/sm90/linear_skinny_sm90.cuh"

namespace whit::cuda {

void stream_w4a8_two_level(const StreamParams& p, int units, int room, cudaStream_t stream) {
  launch_stream<LinearFormat::kW4A8TwoLevel, true>(p, units, room, stream);
}

}  // namespace whit::cuda
