// Attention in plain C++, for any head size; the other ISAs use it for head sizes that are no
// multiple of their lanes.
#pragma once

#include "ops/ops.h"

namespace whit::cpu::portable {

void kv_write(const KvWriteArgs& args, const Worker& worker);
void kv_commit(const KvWriteArgs& args, const Worker& worker);
int64_t attention_scratch_bytes(const AttentionArgs& args);
void attention(const AttentionArgs& args, const Worker& worker);
bool attention_in_parts(const AttentionArgs& args, int workers);
void attention_merge(const AttentionArgs& args, const Worker& worker);

}  // namespace whit::cpu::portable
