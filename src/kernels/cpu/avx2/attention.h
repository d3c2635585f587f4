// Attention and cache writes of the AVX2 row; the AVX-512 row uses them for head sizes ≡ 8 mod 16.
#pragma once

#include "ops/ops.h"

namespace whit::cpu::avx2 {

void kv_write(const KvWriteArgs& args, const Worker& worker);
void kv_commit(const KvWriteArgs& args, const Worker& worker);
int64_t attention_scratch_bytes(const AttentionArgs& args);
void attention(const AttentionArgs& args, const Worker& worker);
bool attention_in_parts(const AttentionArgs& args, int workers);
void attention_merge(const AttentionArgs& args, const Worker& worker);

}  // namespace whit::cpu::avx2
