// Attention on Hopper (SM 9.0 alone); attention() in small_ops.h chooses.
#pragma once

#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

void attention_decode_sm90(const AttentionArgs& args, CUstream_st* stream);

// Whether it has a kernel for these: bfloat16 caches, heads of more than 32 values.
bool attention_prefill_sm90(const AttentionArgs& args, CUstream_st* stream);

}  // namespace whit::cuda
