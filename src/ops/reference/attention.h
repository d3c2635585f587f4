// Oracles of kv_write and attention (layouts: KvCacheView in ops/ops.h).
//   kv_write   values are clamped to ±65504 before rounding to f16, so that no later sum meets an
//   infinity. attention  a plain softmax in double over the query's own context; the position of a
//   query in its sequence is
//              context_len − rows + i.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

// Element offsets of dimension d of the token at (page, offset) for one kv head.
inline int64_t key_offset(const KvCacheView& cache, int64_t page, int64_t head, int64_t offset,
                          int64_t d) {
  const int64_t tile = (page * cache.kv_heads + head) * (cache.page_tokens / 16) + offset / 16;
  return (tile * cache.head_dim + d) * 16 + offset % 16;
}
inline int64_t value_offset(const KvCacheView& cache, int64_t page, int64_t head, int64_t offset,
                            int64_t d) {
  return ((page * cache.kv_heads + head) * cache.page_tokens + offset) * cache.head_dim + d;
}

void kv_write(const KvWriteArgs& args);
void attention(const AttentionArgs& args);

}  // namespace whit::reference
