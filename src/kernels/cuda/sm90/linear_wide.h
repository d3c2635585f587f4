// int8, e4m3 or bf16 activations × 4- or 8-bit weights for many rows on Hopper's warpgroup tensor
// cores.
//
// A block is two consumer warpgroups of 64 weight rows × 32 to 256 tokens, and a producer whose
// warps copy: one the tokens, through a 128-byte-swizzled tensor map, one the weights of each
// consumer; the fourth fetches the tokens' scales. Weights are the A operand, unpacked in registers
// or, of kW8A8, as they lie in shared memory. A consumer always has products in flight while it
// scales the ones before; two blocks of a cluster share the copying of wide tiles' tokens. Rows of
// bf16 to which nothing is added but a bias go from registers through stmatrix to y.
// Blocks take tiles in turns; where the last turn has tiles for at most half of them, each is dealt
// out as two halves, in which a block has 64 rows and its second warpgroup only says that it has
// read. No sum's order changes.
// Bounds: the tensor cores' rate (4096 MAC of int8 a clock and SM), and what stands beside it.
// While products run, the ALU pipe goes at half its rate (LOP3 and IMAD, measured: 131 instead of
// 68 clocks for 32 instructions of four warps), and group scales take an I2F and an FMA an output
// and 128 of K, unpacking with zero points 3.5 instructions for four weights: with 128 tokens that,
// not the tensor cores, decides. K is summed in k_chunks: by one block in turn, or by the blocks of
// a cluster, one or two chunks each, where the tiles are too few for the SMs. All add the chunks'
// sums in the same order.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_skinny.h"

namespace whit::cuda {

// Whether there is a kernel: 4 bits in groups of 128, or 8 bits.
bool wide_supports(const LinearWeight& weight, const DeviceInfo& device);

// Same contract as LinearRunner::run.
void run_wide(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream);

}  // namespace whit::cuda
