// Few rows × 4- or 8-bit weights on Hopper: the portable streaming kernel's sums.
//
// Every warp streams its own 16 or 32 weight rows, or a chunk of K of them, through a ring of its
// own in shared memory, which its elected lane fills by bulk copies; activations lie in shared
// memory, made there or copied; products by mma.sync. Zero points come in once a group: Σ code·x
// less zero · Σ x, of which the tensor cores make the second sum from an operand of ones.
// Bound: the weight's bytes at the read bandwidth while M ≤ 8; above, the latency of a step, of
// which two warps a scheduler hide too little.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_skinny.h"

namespace whit::cuda {

// Whether there is a kernel: up to 16 rows, K a multiple of 128, 4 bits in groups of 128 or kW8A8
// (of that up to 8 rows), activations that fit in shared memory.
bool skinny_sm90_supports(const LinearArgs& args, const DeviceInfo& device);

// Whether it has one that activates gates and ups (ActivatedOutput), of rows that it makes.
bool skinny_sm90_activates(const LinearWeight& weight, const DeviceInfo& device);

// Same contract as LinearRunner::run.
void run_skinny_sm90(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream);

}  // namespace whit::cuda
