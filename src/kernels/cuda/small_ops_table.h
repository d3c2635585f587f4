// The functions behind small_ops(); see there.
#pragma once

#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

void embedding(const EmbeddingArgs& args, CUstream_st* stream);
void rms_norm(const RmsNormArgs& args, CUstream_st* stream);
void silu_mul(const SiluMulArgs& args, CUstream_st* stream);
void quantize(const QuantizeArgs& args, CUstream_st* stream);
void rope_kv_write(const RopeKvArgs& args, CUstream_st* stream);
void attention(const AttentionArgs& args, CUstream_st* stream);
void argmax(const ArgmaxArgs& args, CUstream_st* stream);
void sample(const SampleArgs& args, CUstream_st* stream);

}  // namespace whit::cuda
