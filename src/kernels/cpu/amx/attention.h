// Attention of the AMX row, which differs from the AVX-512 row's for bf16 caches.
#pragma once

#include "ops/ops.h"

namespace whit::cpu::amx {

int64_t attention_scratch_bytes(const AttentionArgs& args);
void attention(const AttentionArgs& args, const Worker& worker);
void attention_merge(const AttentionArgs& args, const Worker& worker);

}  // namespace whit::cpu::amx
