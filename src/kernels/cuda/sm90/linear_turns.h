// int8 activations × int8 weights for many rows: the products of linear_wide.h, its warpgroups in
// turns.
//
// A block has the producer and two consumers of linear_wide.h, but each consumer has tiles of its
// own, 128 rows × 128 tokens, every second of the block's: while one stores, the other has the
// tensor cores to itself. A ring's stages are steps of K in the tiles' order; who has seen the last
// of its own gives the turn to the other. Two blocks of a cluster share the copying of tokens, so
// that an SM takes 24 KB for 512 clocks of products.
// Bounds: the tensor cores' rate, L2's (9.3 TB/s are drawn), and power: at the clock that is left a
// card needs as long for the same products by linear_wide.
#pragma once

#include "kernels/cuda/sm90/linear_wide_shape.cuh"

namespace whit::cuda {

constexpr int kTurnTokens = 128;  // of a tile

// For rows that are stored as they are (p.direct). Of p the tiles and token tiles are this
// kernel's, parts and sharers are not read.
void run_turns(const LinearArgs& args, const WideParams& p, int sms, cudaStream_t stream);

}  // namespace whit::cuda
