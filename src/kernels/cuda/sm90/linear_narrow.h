// Up to 64 rows × 4-bit weights on Hopper's warpgroup tensor cores.
//
// A block has an SM for itself: sixteen warps, each of which unpacks 16 weight rows, or a chunk of
// K of them, in registers, and four more that copy, into rings in shared memory, those rows and the
// activations, as all of K of these would not fit. Four warps, a warpgroup, multiply what they have
// by the same 128 of K of the activations (wgmma, 8 to 64 tokens). Rows are dealt out to blocks by
// 16, so that every SM reads as many bytes; each block goes once through K where it has no more
// than 256 rows. Where K has chunks, each is of warpgroups of its own, whose sums meet in shared
// memory; where a block has so few rows that half of its warps had none, a warp has 8.
// Bound: the weight's bytes at the read bandwidth; where rows are few, what comes before the first
// product and the latency of a step.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_skinny.h"

namespace whit::cuda {

// Whether there is a kernel: up to 64 rows that are given, of kW4A16 32, and 4 bits in groups of
// 128.
bool narrow_supports(const LinearArgs& args, const DeviceInfo& device);

// Same contract as LinearRunner::run; x is given, not made.
void run_narrow(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream);

}  // namespace whit::cuda
