// int8 activations × 4- or 8-bit weights for many rows on Hopper's warpgroup tensor cores.
//
// A block is a producer and two consumer warpgroups of 64 weight rows × 64 or 128 tokens. Weights
// are the A operand, unpacked in registers; tokens come through a 128-byte-swizzled tensor map. The
// consumers take turns: while one scales its sums the other multiplies.
// Bounds: the int8 peak (4096 MAC a clock and SM); beside it the issue of the group scales, an I2F
// and an FMA an output and 128 of K; and the L2's bandwidth, of which 128 × 128 tiles at the peak
// would ask 49 bytes a clock and SM.
// K is summed in k_chunks: by one block in turn, or each by a block of a cluster where the tiles
// are too few for the SMs. Both add the chunks' sums in the same order.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_skinny.h"

namespace whit::cuda {

// Whether there is a kernel: kW4A8 in groups of 128, kW8A8.
bool wide_supports(const LinearWeight& weight, const DeviceInfo& device);

// Same contract as LinearRunner::run.
void run_wide(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream);

}  // namespace whit::cuda
