#include "ops/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace whit::reference {
namespace {

float load(const void* data, DType dtype, int64_t i) {
  return dtype == DType::kF32 ? static_cast<const float*>(data)[i]
                              : f16_to_f32(static_cast<const uint16_t*>(data)[i]);
}

void store(void* data, DType dtype, int64_t i, float value) {
  constexpr float kLargest = 65504.0f;
  if (dtype == DType::kF32)
    static_cast<float*>(data)[i] = value;
  else
    static_cast<uint16_t*>(data)[i] = f32_to_f16(value < -kLargest  ? -kLargest
                                                 : value > kLargest ? kLargest
                                                                    : value);
}

// Row t of sequence b at `position` with one head.
void attend(const AttentionArgs& args, int64_t b, int64_t t, int64_t position, int64_t head) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, kv_head = head / (args.heads / cache.kv_heads);
  const int64_t first =
      args.sliding_window > 0 ? std::max<int64_t>(0, position - args.sliding_window + 1) : 0;
  const float* q = args.q + t * args.q_stride + head * dh;
  const int32_t* pages = args.batch.block_table + b * args.batch.max_blocks;

  std::vector<double> scores(position + 1 - first), out(dh);
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t s = first; s <= position; ++s) {
    double dot = 0;
    for (int64_t d = 0; d < dh; ++d)
      dot += static_cast<double>(q[d]) * load(cache.k, cache.dtype,
                                              key_offset(cache, pages[s / cache.page_tokens],
                                                         kv_head, s % cache.page_tokens, d));
    scores[s - first] = dot * args.scale;
    largest = std::max(largest, scores[s - first]);
  }
  for (int64_t s = first; s <= position; ++s) {
    const double p = std::exp(scores[s - first] - largest);
    sum += p;
    for (int64_t d = 0; d < dh; ++d)
      out[d] += p * load(cache.v, cache.dtype,
                         value_offset(cache, pages[s / cache.page_tokens], kv_head,
                                      s % cache.page_tokens, d));
  }
  for (int64_t d = 0; d < dh; ++d)
    args.out[t * args.out_stride + head * dh + d] = static_cast<float>(out[d] / sum);
}

}  // namespace

void kv_write(const KvWriteArgs& args) {
  const KvCacheView& cache = args.cache;
  for (int64_t t = 0; t < args.batch.t; ++t) {
    const int64_t page = args.batch.slots[t] / cache.page_tokens;
    const int64_t offset = args.batch.slots[t] % cache.page_tokens;
    for (int64_t head = 0; head < cache.kv_heads; ++head)
      for (int64_t d = 0; d < cache.head_dim; ++d) {
        const int64_t from = head * cache.head_dim + d;
        store(cache.k, cache.dtype, key_offset(cache, page, head, offset, d),
              args.k[t * args.k_stride + from]);
        store(cache.v, cache.dtype, value_offset(cache, page, head, offset, d),
              args.v[t * args.v_stride + from]);
      }
  }
}

void attention(const AttentionArgs& args) {
  for (int64_t b = 0; b < args.batch.b; ++b) {
    const int64_t begin = args.batch.query_start[b], end = args.batch.query_start[b + 1];
    for (int64_t t = begin; t < end; ++t)
      for (int64_t head = 0; head < args.heads; ++head)
        attend(args, b, t, args.batch.context_len[b] - (end - t), head);
  }
}

}  // namespace whit::reference
