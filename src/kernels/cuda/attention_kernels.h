// The two ways to attention; attention() in small_ops.h chooses.
#pragma once

#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

void attention_decode(const AttentionArgs& args, CUstream_st* stream);
void attention_prefill(const AttentionArgs& args, CUstream_st* stream);

}  // namespace whit::cuda
