// Oracles of kv_write, kv_commit and attention (layouts: KvCacheView in ops/ops.h).
//   kv_write   numbers that become codes are clamped to ±65504 first, so that no later sum meets an
//              infinity. Codes of 16 bits: scale as ops/kv_layout.h says, the squares of ‖x‖ summed
//              in 16 lanes of which then the upper half is added to the lower, four times; code =
//              rne(x · (1 / scale)). Others: scale = f16((high − low) / levels), minimum =
//              f16(low), levels 255 or 15; code = clamp(rne((x − minimum) · (1 / scale)), 0,
//              levels). Each step is rounded to f32; codes are 0 where scale is 0, or x NaN. In a
//              cache with tails x is rounded to f16 first.
//   attention  a plain softmax in double over the query's own context; the position of a query in
//              its sequence is context_len − rows + i.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

// Offsets in f32 caches from cache.k and cache.v of dimension d of the token at (page, offset) for
// one kv head.
inline int64_t key_offset(const KvCacheView& cache, int64_t page, int64_t head, int64_t offset,
                          int64_t d) {
  const int64_t tile = head * (cache.page_tokens / 16) + offset / 16;
  return page * (cache.k_page_bytes / 4) + (tile * cache.head_dim + d) * 16 + offset % 16;
}
inline int64_t value_offset(const KvCacheView& cache, int64_t page, int64_t head, int64_t offset,
                            int64_t d) {
  return page * (cache.v_page_bytes / 4) + (head * cache.page_tokens + offset) * cache.head_dim + d;
}

// Of caches of blocks.
enum class Part { kKeys, kValues };
inline uint8_t* kv_block(const KvCacheView& cache, Part part, int64_t page, int64_t head,
                         int64_t offset) {
  const int64_t block = head * (cache.page_tokens / kKvBlockTokens) + offset / kKvBlockTokens;
  return part == Part::kKeys
             ? static_cast<uint8_t*>(cache.k) + page * cache.k_page_bytes +
                   block * key_block_bytes(cache.type, cache.key_layout, cache.head_dim)
             : static_cast<uint8_t*>(cache.v) + page * cache.v_page_bytes +
                   block * value_block_bytes(cache.type, cache.head_dim);
}
inline int64_t tail_offset(const KvCacheView& cache, int64_t tail, int64_t head, int64_t position) {
  return ((tail * cache.kv_heads + head) * kKvTailTokens + position % kKvTailTokens) *
         cache.head_dim;
}

// Key or value d of the token at (page, offset), from its block.
float decoded(const KvCacheView& cache, Part part, int64_t page, int64_t head, int64_t offset,
              int64_t d);
// Key or value d of the token at `position` of sequence b before its block is full: of this step's
// rows, else of the tail.
float exact(const KvCacheView& cache, const BatchView& batch, Part part, const float* rows,
            int64_t stride, int64_t b, int64_t position, int64_t head, int64_t d);
// kv_write of some heads of a cache of blocks.
void kv_write_blocks(const KvWriteArgs& args, int64_t head_begin, int64_t head_end);

void kv_write(const KvWriteArgs& args);
void kv_commit(const KvWriteArgs& args);
void attention(const AttentionArgs& args);

}  // namespace whit::reference
