// 8-bit weights, int8 activations.
#include "kernels/cuda/sm90/linear_skinny_sm90.cuh"

namespace whit::cuda {

void stream_w8a8(const StreamParams& p, int units, int room, cudaStream_t stream) {
  launch_stream<LinearFormat::kW8A8, false>(p, units, room, stream);
}

}  // namespace whit::cuda
