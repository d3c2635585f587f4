// How attention is cut into units of work; shared by the ISA folders, with internal linkage in
// each.
//
// A unit is a block of consecutive queries of one sequence times some query heads of one kv head:
// a key or value is loaded once for all of them. Workers get contiguous runs of (sequence, query
// block, head) of equal cost: with few sequences in decode the heads of a kv head are divided
// between workers, with many they stay together.
//
// Where that gives the workers unequal parts because queries are few, they divide the context of
// each kv head instead, into chunks of 256 tokens, whose results are put together afterwards.
//
// A query's result does not depend on the cut. Per query and head every kernel does, for each block
// of 64 tokens in ascending order (blocks start at multiples of 64 of the sequence's positions):
//   s_j = Σ_d (q_d · scale) · k_jd     ascending d, one accumulator
//   m'  = max(m, max_j s_j),  α = exp(m − m'),  p_j = exp(s_j − m'), 0 where masked
//   l   = l · α + Σ_j p_j              order fixed by the ISA
//   o_d = o_d · α + Σ_j p_j · v_jd     ascending j, one accumulator; terms with p_j = 0 are no-ops
// beginning anew with each chunk of 256 tokens (portable: once), whose m, l and o are added to the
// context's in the same way, in ascending order; and o / l at the end. Caches of codes:
// small_ops_codes.h. Tokens beyond a sequence's context are never read as numbers; later tokens of
// the same block are only multiplied by zero, so their values must be finite (kv_write clamps what
// becomes codes to ±65504).
#pragma once

#include <cstddef>

#include "ops/ops.h"

namespace whit::cpu {
namespace {

constexpr int64_t kBlockTokens = 64;  // of the online softmax: part of the contract
constexpr int64_t kTileTokens = 16;   // of the key layout
// What workers divide a context into: part of the contract. Putting a chunk together costs a
// hundredth of it, and with 16 threads 2048 tokens of 3 kv heads are 24 parts.
constexpr int64_t kChunkTokens = 256;
// Units of so few rows (queries × heads) read the cache itself, and may have parts.
constexpr int64_t kDirectRows = 8;

// Where one kv head's f32 numbers, or blocks of codes, of a page begin.
inline float* keys_of(const KvCacheView& cache, int64_t page, int64_t head) {
  return reinterpret_cast<float*>(static_cast<std::byte*>(cache.k) + page * cache.k_page_bytes) +
         head * cache.page_tokens * cache.head_dim;
}
inline float* values_of(const KvCacheView& cache, int64_t page, int64_t head) {
  return reinterpret_cast<float*>(static_cast<std::byte*>(cache.v) + page * cache.v_page_bytes) +
         head * cache.page_tokens * cache.head_dim;
}
inline uint8_t* key_blocks_of(const KvCacheView& cache, int64_t page, int64_t head) {
  return static_cast<uint8_t*>(cache.k) + page * cache.k_page_bytes +
         head * (cache.page_tokens / kKvBlockTokens) *
             key_block_bytes(cache.type, cache.key_layout, cache.head_dim);
}
inline uint8_t* value_blocks_of(const KvCacheView& cache, int64_t page, int64_t head) {
  return static_cast<uint8_t*>(cache.v) + page * cache.v_page_bytes +
         head * (cache.page_tokens / kKvBlockTokens) *
             value_block_bytes(cache.type, cache.head_dim);
}

// Calls body(sequence, from, to, kv head) for this worker's share of the blocks that kv_write
// writes: tokens [from, to), all in one block, of a cache of blocks.
template <typename Body>
void for_each_written_block(const KvWriteArgs& args, const Worker& worker, const Body& body) {
  const bool tails = kv_has_tails(args.cache.type, args.cache.key_layout);
  const auto for_each_block = [&](const auto& visit) {
    for (int64_t b = 0; b < args.batch.b; ++b) {
      const int64_t last = args.batch.context_len[b];
      const int64_t first = last - (args.batch.query_start[b + 1] - args.batch.query_start[b]);
      for (int64_t start = first / kKvBlockTokens * kKvBlockTokens; start < last;
           start += kKvBlockTokens) {
        const int64_t end = start + kKvBlockTokens < last ? start + kKvBlockTokens : last;
        if (tails && end - start < kKvBlockTokens) continue;
        visit(b, tails || start > first ? start : first, end);
      }
    }
  };
  int64_t blocks = 0;
  for_each_block([&](int64_t, int64_t, int64_t) { ++blocks; });
  const Range part = split(blocks * args.cache.kv_heads, 1, worker);
  int64_t unit = 0;
  for_each_block([&](int64_t b, int64_t from, int64_t to) {
    for (int64_t head = 0; head < args.cache.kv_heads; ++head, ++unit)
      if (unit >= part.begin && unit < part.end) body(b, from, to, head);
  });
}

// Where the block of a token of a bf16 cache is.
struct Bf16Block {
  uint16_t *k, *v;
};
inline Bf16Block bf16_block_of(const KvCacheView& cache, const BatchView& batch, int64_t b,
                               int64_t token, int64_t head) {
  const int64_t page = batch.block_table[b * batch.max_blocks + token / cache.page_tokens];
  const int64_t at = token % cache.page_tokens / kKvBlockTokens * bf16_block_bytes(cache.head_dim);
  return {reinterpret_cast<uint16_t*>(key_blocks_of(cache, page, head) + at),
          reinterpret_cast<uint16_t*>(value_blocks_of(cache, page, head) + at)};
}

// Tokens [from, to), all in one block, of a bf16 cache.
inline void write_bf16_tokens(const KvWriteArgs& args, int64_t b, int64_t from, int64_t to,
                              int64_t head) {
  const int64_t dh = args.cache.head_dim, padded = bf16_head_dim(dh);
  const auto [k, v] = bf16_block_of(args.cache, args.batch, b, from, head);
  if (from % kKvBlockTokens == 0) __builtin_memset(v, 0, bf16_block_bytes(dh));
  for (int64_t t = from; t < to; ++t) {
    const int64_t row = args.batch.query_start[b + 1] - (args.batch.context_len[b] - t);
    const int64_t at = t % kKvBlockTokens;
    for (int64_t d = 0; d < padded; ++d) {
      k[bf16_key_at(at, d, dh)] = d < dh ? kv_bf16(args.k[row * args.k_stride + head * dh + d]) : 0;
      v[bf16_value_at(at, d)] = d < dh ? kv_bf16(args.v[row * args.v_stride + head * dh + d]) : 0;
    }
  }
}

struct AttentionUnit {
  int64_t sequence;
  int64_t row_begin, row_end;  // rows of q and out
  int64_t position;            // of row_begin
  int64_t kv_head;
  int64_t head_begin, head_end;  // query heads, all of kv_head
  // Of a part: chunks of the context, and where its worker keeps them.
  int64_t chunk_begin = 0, chunk_end = INT64_MAX;
  int64_t slot = -1;
};

// Queries per unit: about 96 rows (queries × heads) share one widening of a block of keys and
// values, which then costs 3 % of their arithmetic; many more rows would leave L2.
inline int64_t query_block(const AttentionArgs& args) {
  const int64_t group = args.heads / args.cache.kv_heads;
  return group >= 96 ? 1 : 96 / group;
}

// Queries in one block of 32 tokens of a cache with tails read that block's tokens exactly, all
// others' by their codes: a unit's queries are in one such block.
inline bool has_tails(const AttentionArgs& args) {
  return kv_has_tails(args.cache.type, args.cache.key_layout);
}
inline int64_t own_block(const AttentionArgs& args, const AttentionUnit& unit) {
  return has_tails(args) ? unit.position / kKvBlockTokens * kKvBlockTokens : INT64_MAX;
}

// Tokens seen by the queries at positions [begin, end), plus what a row costs besides.
inline int64_t attention_cost(const AttentionArgs& args, int64_t begin, int64_t end) {
  int64_t seen = (begin + end + 1) / 2;
  if (args.sliding_window > 0 && args.sliding_window < seen) seen = args.sliding_window;
  return 2 * (end - begin) * (seen + 32);  // even, so that its half is exact
}

// Calls body(sequence, row_begin, row_end, position, cost of one head) for the query blocks in
// order.
template <typename Body>
void for_each_query_block(const AttentionArgs& args, const Body& body) {
  const int64_t step = query_block(args);
  for (int64_t b = 0; b < args.batch.b; ++b) {
    const int64_t begin = args.batch.query_start[b], end = args.batch.query_start[b + 1];
    const int64_t first_position = args.batch.context_len[b] - (end - begin);
    for (int64_t row = begin, row_end; row < end; row = row_end) {
      const int64_t position = first_position + row - begin;
      row_end = row + step < end ? row + step : end;
      if (has_tails(args) && row_end - row > kKvBlockTokens - position % kKvBlockTokens)
        row_end = row + kKvBlockTokens - position % kKvBlockTokens;
      body(b, row, row_end, position, attention_cost(args, position, position + row_end - row));
    }
  }
}

// Calls body(AttentionUnit) for this worker's units.
template <typename Body>
void for_each_attention_unit(const AttentionArgs& args, const Worker& worker, const Body& body) {
  int64_t total = 0;
  for_each_query_block(
      args, [&](int64_t, int64_t, int64_t, int64_t, int64_t cost) { total += cost * args.heads; });
  const int64_t low = total * worker.index / worker.count;
  const int64_t high = total * (worker.index + 1) / worker.count;
  const int64_t group = args.heads / args.cache.kv_heads;
  int64_t before = 0;
  for_each_query_block(
      args, [&](int64_t b, int64_t row, int64_t row_end, int64_t position, int64_t cost) {
        // A head belongs to the worker in whose share the middle of its cost falls.
        const auto middle = [&](int64_t head) { return before + head * cost + cost / 2; };
        int64_t head = 0;
        while (head < args.heads && middle(head) < low) ++head;
        while (head < args.heads && middle(head) < high) {
          const int64_t group_end = (head / group + 1) * group;
          int64_t end = head + 1;
          while (end < group_end && middle(end) < high) ++end;
          body(AttentionUnit{b, row, row_end, position, head / group, head, end});
          head = end;
        }
        before += args.heads * cost;
      });
}

// ---- parts of a context -------------------------------------------------------------------------

inline int64_t chunks_of_longest(const AttentionArgs& args) {
  int64_t longest = 0;
  for (int64_t b = 0; b < args.batch.b; ++b)
    if (args.batch.context_len[b] > longest) longest = args.batch.context_len[b];
  return (longest + kChunkTokens - 1) / kChunkTokens;
}

// Whether every unit has so few rows that its chunks may be kept.
inline bool may_have_parts(const AttentionArgs& args) {
  const int64_t most = kDirectRows / (args.heads / args.cache.kv_heads);
  for (int64_t b = 0; b < args.batch.b; ++b)
    if (args.batch.query_start[b + 1] - args.batch.query_start[b] > most) return false;
  return true;
}

// With several units a worker their own number balances the work.
inline bool in_parts(const AttentionArgs& args, int workers) {
  return workers > 1 && args.batch.b * args.cache.kv_heads < 4 * workers && may_have_parts(args) &&
         chunks_of_longest(args) > 1;
}

// The tokens of a unit: from the first that its first query sees, or of its chunks, to the last.
inline int64_t begin_of_chunks(const AttentionUnit& unit, int64_t window) {
  const int64_t first = unit.position + 1 > window ? unit.position + 1 - window : 0;
  const int64_t begin = unit.chunk_begin * kChunkTokens;
  return begin > first ? begin : first;
}
inline int64_t end_of_chunks(const AttentionUnit& unit, int64_t context) {
  return unit.chunk_end < (context + kChunkTokens - 1) / kChunkTokens
             ? unit.chunk_end * kChunkTokens
             : context;
}

// Calls body(AttentionUnit, worker, units before it of the same queries and heads, last of them)
// for all units of all workers, in ascending order of sequence, kv head and chunk. A worker has at
// most two units that are parts: its first and its last.
template <typename Body>
void for_each_part(const AttentionArgs& args, int workers, const Body& body) {
  const int64_t group = args.heads / args.cache.kv_heads;
  // A chunk costs its tokens; beginning one costs about as much as 32.
  const auto for_each_head = [&](const auto& visit) {
    for_each_query_block(
        args, [&](int64_t b, int64_t row, int64_t row_end, int64_t position, int64_t) {
          const int64_t last = position + row_end - row;
          const int64_t window = args.sliding_window > 0 ? args.sliding_window : last;
          const int64_t first = position + 1 > window ? position + 1 - window : 0;
          for (int64_t head = 0; head < args.cache.kv_heads; ++head)
            visit(AttentionUnit{.sequence = b,
                                .row_begin = row,
                                .row_end = row_end,
                                .position = position,
                                .kv_head = head,
                                .head_begin = head * group,
                                .head_end = (head + 1) * group},
                  first, last);
        });
  };
  const auto cost_of = [](int64_t chunk, int64_t first, int64_t last) {
    const int64_t begin = chunk * kChunkTokens, end = begin + kChunkTokens;
    return 2 * ((end < last ? end : last) - (begin > first ? begin : first) + 32);
  };
  int64_t total = 0;
  for_each_head([&](const AttentionUnit&, int64_t first, int64_t last) {
    for (int64_t c = first / kChunkTokens; c * kChunkTokens < last; ++c)
      total += cost_of(c, first, last);
  });
  int64_t before = 0;
  int worker = 0;
  int64_t slot = 0;
  for_each_head([&](AttentionUnit unit, int64_t first, int64_t last) {
    const int64_t begin = first / kChunkTokens, end = (last + kChunkTokens - 1) / kChunkTokens;
    int64_t order = 0;
    for (int64_t c = begin; c < end; ++order) {
      // A chunk belongs to the worker in whose share the middle of its cost falls.
      const auto owned = [&](int64_t chunk) {
        return before + cost_of(chunk, first, last) / 2 < total * (worker + 1) / workers;
      };
      while (!owned(c)) {
        ++worker;
        slot = 0;
      }
      unit.chunk_begin = c;
      for (; c < end && owned(c); ++c) before += cost_of(c, first, last);
      unit.chunk_end = c;
      const bool part = unit.chunk_begin > begin || c < end;
      unit.slot = part ? slot++ : -1;
      body(unit, worker, order, c == end);
    }
  });
}

}  // namespace
}  // namespace whit::cpu
