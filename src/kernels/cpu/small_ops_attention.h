// How attention is cut into units of work; shared by the ISA folders, with internal linkage in
// each.
//
// A unit is a block of consecutive queries of one sequence times some query heads of one kv head:
// a key or value is loaded once for all of them. Workers get contiguous runs of (sequence, query
// block, head) of equal cost: with few sequences in decode the heads of a kv head are divided
// between workers, with many they stay together.
//
// A query's result does not depend on the cut. Per query and head every kernel does, for each block
// of 64 tokens in ascending order (blocks start at multiples of 64 of the sequence's positions):
//   s_j = Σ_d (q_d · scale) · k_jd     ascending d, one accumulator
//   m'  = max(m, max_j s_j),  α = exp(m − m'),  p_j = exp(s_j − m'), 0 where masked
//   l   = l · α + Σ_j p_j              order fixed by the ISA
//   o_d = o_d · α + Σ_j p_j · v_jd     ascending j, one accumulator; terms with p_j = 0 are no-ops
// and o / l at the end. Integer caches: small_ops_codes.h. Tokens beyond a sequence's context are
// never read as numbers; later tokens of the same block are only multiplied by zero, so their
// values must be finite (kv_write clamps f16 caches to ±65504).
#pragma once

#include "ops/ops.h"

namespace whit::cpu {
namespace {

constexpr int64_t kBlockTokens = 64;  // of the online softmax: part of the contract
constexpr int64_t kTileTokens = 16;   // of the key layout

struct AttentionUnit {
  int64_t sequence;
  int64_t row_begin, row_end;  // rows of q and out
  int64_t position;            // of row_begin
  int64_t kv_head;
  int64_t head_begin, head_end;  // query heads, all of kv_head
};

// Queries per unit: about 96 rows (queries × heads) share one conversion of a block of keys and
// values to f32, which then costs 3 % of their arithmetic; many more rows would leave L2.
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

}  // namespace
}  // namespace whit::cpu
