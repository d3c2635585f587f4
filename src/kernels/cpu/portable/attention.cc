// Paged causal attention, one (query, head) at a time; the order of sums is stated in
// small_ops_attention.h.
#include "kernels/cpu/portable/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/checked.h"
#include "kernels/cpu/small_ops_attention.h"
#include "ops/reference/attention.h"

namespace whit::cpu::portable {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

void write_rows(const KvWriteArgs& args, const Worker& worker) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, p = cache.page_tokens;
  const Range part = split(args.batch.t * cache.kv_heads, 1, worker);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t t = i / cache.kv_heads, head = i % cache.kv_heads;
    const int64_t page = args.batch.slots[t] / p, offset = args.batch.slots[t] % p;
    float* k =
        keys_of(cache, page, head) + offset / kTileTokens * kTileTokens * dh + offset % kTileTokens;
    float* v = values_of(cache, page, head) + offset * dh;
    for (int64_t d = 0; d < dh; ++d) {
      k[d * kTileTokens] = args.k[t * args.k_stride + head * dh + d];
      v[d] = args.v[t * args.v_stride + head * dh + d];
    }
  }
}

// A block of one kv head's keys [tiles][Dh][16] and values [tokens][Dh] as f32.
struct Block {
  float *k, *v;
};

void load_block(const AttentionArgs& args, const AttentionUnit& unit, int64_t begin, int64_t end,
                const Block& block) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, p = cache.page_tokens;
  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t first = token % p / kTileTokens * kTileTokens * dh;
    const int64_t lane = token % kTileTokens, row = token - begin;
    const float* k = keys_of(cache, pages[token / p], unit.kv_head) + first + lane;
    const float* v = values_of(cache, pages[token / p], unit.kv_head) + first + lane * dh;
    for (int64_t d = 0; d < dh; ++d) {
      block.k[row * dh + d] = k[d * kTileTokens];
      block.v[row * dh + d] = v[d];
    }
  }
}

// The same of codes of 16 bits, as reference::decoded reads them.
void load_words(const AttentionArgs& args, const AttentionUnit& unit, int64_t begin, int64_t end,
                const Block& block) {
  using reference::Part;
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, p = cache.page_tokens;
  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  for (int64_t token = begin; token < end; ++token)
    for (const Part part : {Part::kKeys, Part::kValues}) {
      const uint8_t* from =
          reference::kv_block(cache, part, pages[token / p], unit.kv_head, token % p);
      const int64_t at = token % kKvBlockTokens;
      const float scale = reinterpret_cast<const float*>(from + kv_code_bytes(16, dh))[at];
      const auto* codes = reinterpret_cast<const int16_t*>(from);
      float* to = (part == Part::kKeys ? block.k : block.v) + (token - begin) * dh;
      for (int64_t d = 0; d < dh; ++d) {
        const KvPlace place = part == Part::kKeys ? key_place(at, d, dh) : value_place(at, d, dh);
        to[d] = scale * static_cast<float>(codes[place.unit * 32 + place.lane]);
      }
    }
}

void load_bf16(const AttentionArgs& args, const AttentionUnit& unit, int64_t begin, int64_t end,
               const Block& block) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim;
  for (int64_t token = begin; token < end; ++token) {
    const auto [k, v] = bf16_block_of(cache, args.batch, unit.sequence, token, unit.kv_head);
    const int64_t at = token % kKvBlockTokens, to = (token - begin) * dh;
    for (int64_t d = 0; d < dh; ++d) {
      block.k[to + d] = kv_from_bf16(k[bf16_key_at(at, d, dh)]);
      block.v[to + d] = kv_from_bf16(v[bf16_value_at(at, d)]);
    }
  }
}

// The same of an integer cache. All queries of a unit are in one block of 32 tokens where
// there are tails, so that a token is read alike for all of them.
void load_decoded(const AttentionArgs& args, const AttentionUnit& unit, int64_t begin, int64_t end,
                  const Block& block) {
  using reference::Part;
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, p = cache.page_tokens;
  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  const int64_t own = own_block(args, unit);
  for (int64_t token = begin; token < end; ++token)
    for (int64_t d = 0; d < dh; ++d) {
      float* k = block.k + (token - begin) * dh + d;
      float* v = block.v + (token - begin) * dh + d;
      if (token < own) {
        *k = reference::decoded(cache, Part::kKeys, pages[token / p], unit.kv_head, token % p, d);
        *v = reference::decoded(cache, Part::kValues, pages[token / p], unit.kv_head, token % p, d);
      } else {
        *k = reference::exact(cache, args.batch, Part::kKeys, args.k, args.k_stride, unit.sequence,
                              token, unit.kv_head, d);
        *v = reference::exact(cache, args.batch, Part::kValues, args.v, args.v_stride,
                              unit.sequence, token, unit.kv_head, d);
      }
    }
}

struct Query {
  float maximum = -kInfinity, sum = 0;
};

// Tokens [begin, end) of the block are visible to the query.
void attend_block(const Block& block, int64_t begin, int64_t end, const float* q, float scale,
                  int64_t dh, Query& query, float* out) {
  float p[kBlockTokens];
  float maximum = query.maximum;
  for (int64_t j = begin; j < end; ++j) {
    float score = 0;
    for (int64_t d = 0; d < dh; ++d) score += q[d] * scale * block.k[j * dh + d];
    p[j] = score;
    maximum = std::max(maximum, score);
  }
  const float alpha = std::exp(query.maximum - maximum);
  float sum = 0;
  for (int64_t d = 0; d < dh; ++d) out[d] *= alpha;
  for (int64_t j = begin; j < end; ++j) {
    p[j] = std::exp(p[j] - maximum);
    sum += p[j];
    for (int64_t d = 0; d < dh; ++d) out[d] += p[j] * block.v[j * dh + d];
  }
  query.sum = query.sum * alpha + sum;
  query.maximum = maximum;
}

}  // namespace

void kv_write(const KvWriteArgs& args, const Worker& worker) {
  if (!has_blocks(args.cache.type)) return write_rows(args, worker);
  const Range heads = split(args.cache.kv_heads, 1, worker);
  reference::kv_write_blocks(args, heads.begin, heads.end);
}

void kv_commit(const KvWriteArgs& args, const Worker& worker) {
  if (worker.index == 0) reference::kv_commit(args);
}

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  const int64_t rows = query_block(args) * (args.heads / args.cache.kv_heads);
  return round_up((2 * kBlockTokens * args.cache.head_dim) * sizeof(float) + rows * sizeof(Query),
                  64);
}

void attention(const AttentionArgs& args, const Worker& worker) {
  const int64_t dh = args.cache.head_dim;
  std::byte* scratch = args.scratch + worker.index * attention_scratch_bytes(args);
  const Block block{reinterpret_cast<float*>(scratch),
                    reinterpret_cast<float*>(scratch) + kBlockTokens * dh};
  auto* queries = reinterpret_cast<Query*>(block.v + kBlockTokens * dh);

  for_each_attention_unit(args, worker, [&](const AttentionUnit& unit) {
    const int64_t heads = unit.head_end - unit.head_begin, rows = unit.row_end - unit.row_begin;
    const int64_t window = args.sliding_window > 0 ? args.sliding_window : unit.position + rows;
    const auto out = [&](int64_t row, int64_t head) {
      return args.out + (unit.row_begin + row) * args.out_stride + (unit.head_begin + head) * dh;
    };
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t head = 0; head < heads; ++head) {
        queries[row * heads + head] = Query{};
        std::fill_n(out(row, head), dh, 0.0f);
      }
    const int64_t first =
        std::max<int64_t>(0, unit.position - window + 1) / kBlockTokens * kBlockTokens;
    const int64_t last = unit.position + rows;
    for (int64_t start = first; start < last; start += kBlockTokens) {
      const int64_t end = std::min(last, start + kBlockTokens);
      if (is_integer(args.cache.type))
        load_decoded(args, unit, start, end, block);
      else if (args.cache.type == KvType::kBF16)
        load_bf16(args, unit, start, end, block);
      else if (args.cache.type == KvType::kF32)
        load_block(args, unit, start, end, block);
      else
        load_words(args, unit, start, end, block);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t position = unit.position + row;
        const int64_t begin_token = std::max<int64_t>(0, position - window + 1 - start);
        const int64_t end_token = std::min(end, position + 1) - start;
        if (begin_token >= end_token) continue;
        for (int64_t head = 0; head < heads; ++head)
          attend_block(
              block, begin_token, end_token,
              args.q + (unit.row_begin + row) * args.q_stride + (unit.head_begin + head) * dh,
              args.scale, dh, queries[row * heads + head], out(row, head));
      }
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t head = 0; head < heads; ++head)
        for (int64_t d = 0; d < dh; ++d) out(row, head)[d] /= queries[row * heads + head].sum;
  });
}

bool attention_in_parts(const AttentionArgs&, int) { return false; }
void attention_merge(const AttentionArgs&, const Worker&) {}

}  // namespace whit::cpu::portable
