// 4-bit weights in groups of 128, bf16 activations.
#include "kernels/cuda/sm90/linear_skinny_sm90.cuh"

namespace whit::cuda {

void stream_w4a16(const StreamParams& p, int units, int room, cudaStream_t stream) {
  launch_stream<LinearFormat::kW4A16, true>(p, units, room, stream);
}

}  // namespace whit::cuda
