// Attention over f32 and bf16 caches with an ISA's vector type S, flash-style, and what attention
// over caches of codes shares with it: small_ops_attention.h states the arithmetic. A block of bf16
// is widened to f32 before its use.
//
// Per unit and block of 64 tokens, row tiles of up to 6 rows (query × head) do
//   scores  [6, 64] = q [6, Dh] · k      16 tokens × 6 rows of accumulators (12 ymm, or 24 zmm for
//   64) softmax           64 lanes a row out     [6, Dh] += p [6, 64] · v     6 rows × 16 (ymm) or
//   64 (zmm) dimensions of accumulators
// Bound: per row and token 2·Dh multiply-adds and one exp (about 12 instructions a vector), so at
// Dh = 64 the multiply-adds are 85–90 % of the instructions that use the arithmetic ports.
#pragma once

#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu {
namespace {

constexpr int64_t kTilesPerBlock = kBlockTokens / kTileTokens;
constexpr int64_t kRowTile = 6;

// To L2: a whole phase lies between this and the use. Prefetches to L1 would hold the few places
// for its misses, and the phase's own loads wait behind them (Zen 4: twice the time from memory).
inline __attribute__((always_inline)) void prefetch(const void* at) {
  __builtin_prefetch(at, 0, 2);
}

// o, l and m of a unit's rows.
struct RowState {
  float* out;      // [rows, Dh]
  float* sum;      // [rows, lanes] partial sums of a row, one per lane
  float* maximum;  // [rows], and the rest of a vector
};

template <typename S>
inline int64_t row_state_floats(int64_t rows, int64_t dh) {
  return (rows * (dh + S::kLanes) + rows + S::kLanes + 15) / 16 * 16;
}
template <typename S>
inline RowState row_state(float* at, int64_t rows, int64_t dh) {
  return {at, at + rows * dh, at + rows * (dh + S::kLanes)};
}

template <typename S>
inline void clear_rows(const RowState& state, int64_t rows, int64_t dh) {
  std::memset(state.out, 0, rows * dh * sizeof(float));
  std::memset(state.sum, 0, rows * S::kLanes * sizeof(float));
  for (int64_t i = 0; i < rows + S::kLanes; ++i)  // the last ones are read with others, not used
    state.maximum[i] = -__builtin_inff();
}

// Adds a chunk's rows to the context's.
template <typename S>
inline void add_chunk(const RowState& chunk, int64_t rows, int64_t dh, const RowState& total) {
  using V = typename S::V;
  for (int64_t first = 0; first < rows; first += S::kLanes) {
    const V old = S::load(total.maximum + first), added = S::load(chunk.maximum + first);
    const V maximum = S::max(old, added);
    // Finite, as in softmax_rows.
    const V shift = S::max(maximum, S::set1(-FLT_MAX));
    alignas(64) float alpha[S::kLanes], beta[S::kLanes], maxima[S::kLanes];
    S::store(alpha, exp2_of_nonpositive<S>(S::sub(old, shift)));
    S::store(beta, exp2_of_nonpositive<S>(S::sub(added, shift)));
    S::store(maxima, maximum);
    for (int64_t i = 0; i < least(S::kLanes, rows - first); ++i) {
      const int64_t row = first + i;
      const V a = S::broadcast(alpha + i), b = S::broadcast(beta + i);
      total.maximum[row] = maxima[i];
      const auto add = [&](float* to, const float* from) {
        S::store(to, S::fma(S::load(from), b, S::mul(S::load(to), a)));
      };
      add(total.sum + row * S::kLanes, chunk.sum + row * S::kLanes);
      for (int64_t d = 0; d < dh; d += S::kLanes)
        add(total.out + row * dh + d, chunk.out + row * dh + d);
    }
  }
}

// Both kinds of scratch begin with a worker's parts: [2 slots][chunks] RowStates.
template <typename S>
inline int64_t part_floats(const AttentionArgs& args, int64_t dh) {
  return may_have_parts(args) ? 2 * chunks_of_longest(args) * row_state_floats<S>(kDirectRows, dh)
                              : 0;
}
template <typename S>
inline RowState part_of(const AttentionArgs& args, std::byte* scratch, const AttentionUnit& unit,
                        int64_t chunk, int64_t rows, int64_t dh) {
  const int64_t index = unit.slot * chunks_of_longest(args) + chunk - unit.chunk_begin;
  return row_state<S>(
      reinterpret_cast<float*>(scratch) + index * row_state_floats<S>(kDirectRows, dh), rows, dh);
}

// out = o / l of rows of dh numbers, of which the first head_dim are wanted.
template <typename S>
inline void write_rows(const AttentionArgs& args, const AttentionUnit& unit, int64_t rows,
                       int64_t dh, const RowState& total) {
  using V = typename S::V;
  const int64_t heads = unit.head_end - unit.head_begin, head_dim = args.cache.head_dim;
  for (int64_t row = 0; row < rows; ++row) {
    const V inverse = S::set1(1.0f / S::reduce_add(S::load(total.sum + row * S::kLanes)));
    float* out = args.out + (unit.row_begin + row / heads) * args.out_stride +
                 (unit.head_begin + row % heads) * head_dim;
    // Adding +0 gives every zero the same sign, whichever no-op terms it met.
    for_each_vector<S>(0, head_dim, [&](int64_t d, int64_t n) {
      store<S>(out + d, S::add(S::mul(S::load(total.out + row * dh + d), inverse), S::zero()), n);
    });
  }
}

// `unit_of_parts` are put together by the worker of the first.
template <typename S>
void merge_parts(const AttentionArgs& args, const Worker& worker, int64_t dh, int64_t scratch_bytes,
                 const RowState& total) {
  int owner = 0;
  for_each_part(
      args, worker.count, [&](const AttentionUnit& unit, int of, int64_t order, bool last) {
        if (order == 0) owner = of;
        if (unit.slot < 0 || owner != worker.index) return;
        const int64_t rows = (unit.row_end - unit.row_begin) * (unit.head_end - unit.head_begin);
        if (order == 0) clear_rows<S>(total, rows, dh);
        for (int64_t c = unit.chunk_begin; c < unit.chunk_end; ++c)
          add_chunk<S>(part_of<S>(args, args.scratch + of * scratch_bytes, unit, c, rows, dh), rows,
                       dh, total);
        if (last) write_rows<S>(args, unit, rows, dh, total);
      });
}

// Calls body(AttentionUnit) for this worker's units, whichever way the work is cut.
template <typename Body>
void for_each_unit(const AttentionArgs& args, const Worker& worker, const Body& body) {
  if (!in_parts(args, worker.count)) return for_each_attention_unit(args, worker, body);
  for_each_part(args, worker.count, [&](const AttentionUnit& unit, int of, int64_t, bool) {
    if (of == worker.index) body(unit);
  });
}

struct FlashScratch {
  std::byte* parts;
  float* q;               // [rows, Dh]
  float* p;               // [6, 64] scores, then probabilities
  float *k, *v;           // of bf16: one block, as an f32 cache has it
  RowState chunk, total;  // of the chunk at hand, and of those before it
};

inline int64_t flash_rows(const AttentionArgs& args) {
  return query_block(args) * (args.heads / args.cache.kv_heads);
}
// Channels that are multiplied.
inline int64_t flash_head_dim(const KvCacheView& cache) {
  return cache.type == KvType::kBF16 ? bf16_head_dim(cache.head_dim) : cache.head_dim;
}

// One worker's, and how many bytes that is; `base` may be null.
template <typename S>
inline FlashScratch flash_scratch(const AttentionArgs& args, std::byte* base, int64_t* bytes) {
  const int64_t dh = flash_head_dim(args.cache), rows = flash_rows(args);
  int64_t at = 0;
  const auto take = [&](int64_t floats) {
    auto* result = base == nullptr ? nullptr : reinterpret_cast<float*>(base + at);
    at += (floats * 4 + 63) / 64 * 64;
    return result;
  };
  FlashScratch scratch;
  scratch.parts = reinterpret_cast<std::byte*>(take(part_floats<S>(args, dh)));
  scratch.q = take(rows * dh);
  scratch.p = take(kRowTile * kBlockTokens);
  const int64_t widened = args.cache.type == KvType::kBF16 ? kBlockTokens * dh : 0;
  scratch.k = take(widened);
  scratch.v = take(widened);
  scratch.chunk = row_state<S>(take(row_state_floats<S>(rows, dh)), rows, dh);
  scratch.total = row_state<S>(take(row_state_floats<S>(rows, dh)), rows, dh);
  *bytes = at;
  return scratch;
}

template <typename S>
inline int64_t flash_scratch_bytes(const AttentionArgs& args) {
  int64_t bytes;
  flash_scratch<S>(args, nullptr, &bytes);
  return bytes;
}

template <typename S>
inline typename S::V multiply_add(typename S::V acc, typename S::V a, typename S::V b) {
  return S::fma(a, b, acc);
}

// acc[r][i] += row(r) · column(i), by multiply_add(acc, row, column). The fewer of both stay in
// registers while the others pass by: with 3 × 4 sums, 3 and 1 of 16 registers. Left to itself g++
// 12 makes all of the more numerous first and spills a sum, whose way through memory then takes
// twice the time of the products.
template <typename S, int R, int N, typename A, typename Row, typename Column, typename MultiplyAdd>
inline __attribute__((always_inline)) void add_products(const Row& row, const Column& column,
                                                        const MultiplyAdd& multiply_add,
                                                        A (&acc)[R][N]) {
  if constexpr (R <= N) {
    A rows[R];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) rows[r] = row(r);
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      const A value = S::pinned(column(i));
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) acc[r][i] = multiply_add(acc[r][i], rows[r], value);
    }
  } else {
    A columns[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) columns[i] = column(i);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const A value = row(r);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) acc[r][i] = multiply_add(acc[r][i], value, columns[i]);
    }
  }
}

// p[r][16·n + lane] = Σ_d q[r][d] · k[n][d][lane] for N tiles. Where `ahead` is given, as many
// bytes of its N tiles are prefetched.
template <typename S, int R, int N>
inline void score_tiles(const float* q, int64_t dh, const float* const* k,
                        const float* const* ahead, float* p) {
  constexpr int kVectors = kTileTokens / S::kLanes;
  typename S::V acc[R][N * kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N * kVectors; ++i) acc[r][i] = S::zero();
  for (int64_t d = 0; d < dh; ++d) {
    if (ahead != nullptr)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) prefetch(ahead[n] + d * kTileTokens);
    add_products<S, R, N * kVectors>(
        [&](int r) { return S::broadcast(q + r * dh + d); },
        [&](int i) {
          return S::load(k[i / kVectors] + d * kTileTokens + i % kVectors * S::kLanes);
        },
        multiply_add<S>, acc);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N * kVectors; ++i)
      S::store(p + r * kBlockTokens + i * S::kLanes, acc[r][i]);
}

// out[r][d…] = out[r][d…] · alpha[r] + Σ_j p[r][j] · v[j][d…], j ascending in [begin, end), for N
// vectors of dimensions. Where `ahead` is given, as many bytes of its tiles are prefetched.
template <typename S, int R, int N>
inline void add_values(const float* p, const float* alpha, const float* const* v,
                       const float* const* ahead, int64_t begin, int64_t end, int64_t dh, int64_t d,
                       float* out) {
  constexpr int64_t kLineElements = 64 / sizeof(float);
  typename S::V acc[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
      acc[r][i] = S::mul(S::load(out + r * dh + d + i * S::kLanes), S::broadcast(alpha + r));
  for (int64_t tile = begin / kTileTokens; tile * kTileTokens < end; ++tile) {
    const int64_t first = tile * kTileTokens;
    const int64_t from = begin > first ? begin : first, to = least(end, first + kTileTokens);
    const float* row = v[tile] + (from - first) * dh + d;
    for (int64_t j = from; j < to; ++j, row += dh) {
      if (ahead != nullptr)
#pragma GCC unroll 8
        for (int64_t i = 0; i < N * S::kLanes; i += kLineElements)
          prefetch(ahead[tile] + (row - v[tile]) + i);
      add_products<S, R, N>([&](int r) { return S::broadcast(p + r * kBlockTokens + j); },
                            [&](int i) { return S::load(row + i * S::kLanes); }, multiply_add<S>,
                            acc);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) S::store(out + r * dh + d + i * S::kLanes, acc[r][i]);
}

// Turns R rows of scores, given as multiples of the rows' positive factors, into probabilities
// relative to their new maxima and writes each row's α; each(r, i, p), with vector i of row r's
// probabilities, gives what is stored of them. Tokens outside [begin[r], end[r]) are masked. While
// a row has seen no token its maximum is −∞, its sum and output are 0 and stay so. Of `factor` and
// `maximum` a whole vector is read.
//
// What is one number a row is a lane of one vector: a vector loaded from numbers that were just
// stored one by one would wait until they are in L1, and all rows' arithmetic behind it.
template <typename S, int R, typename Each>
inline void softmax_rows(float* p, const float* factor, const int64_t* begin, const int64_t* end,
                         float* maximum, float* sum, float* alpha, const Each& each) {
  constexpr int kVectors = kBlockTokens / S::kLanes;
  using V = typename S::V;
  V largest[R];
  for (int r = 0; r < R; ++r) {
    float* row = p + r * kBlockTokens;
    V s[kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) s[i] = S::load(row + i * S::kLanes);
    if (begin[r] > 0 || end[r] < kBlockTokens) {
#pragma GCC unroll 8
      for (int i = 0; i < kVectors; ++i) {
        s[i] = S::within(s[i], i * S::kLanes, begin[r], end[r]);
        S::store(row + i * S::kLanes, s[i]);
      }
    }
#pragma GCC unroll 3
    for (int step = kVectors / 2; step > 0; step /= 2)
#pragma GCC unroll 4
      for (int i = 0; i < step; ++i) s[i] = S::max(s[i], s[i + step]);
    largest[r] = s[0];
  }
  const V old_maximum = S::load(maximum);
  const V new_maximum =
      S::max(S::mul(S::combine_rows(largest, [](V a, V b) { return S::max(a, b); }),
                    S::template first_lanes<R>(S::load(factor), S::zero())),
             old_maximum);
  S::store(maximum, S::template first_lanes<R>(new_maximum, old_maximum));
  // Finite, so that masked scores are infinitely far below it also when nothing has been seen.
  const V shift = S::max(new_maximum, S::set1(-FLT_MAX));
  alignas(64) float shifts[S::kLanes];
  S::store(shifts, S::sub(S::zero(), shift));
  S::store(alpha, exp2_of_nonpositive<S>(S::sub(old_maximum, shift)));
  for (int r = 0; r < R; ++r) {
    float* row = p + r * kBlockTokens;
    const V row_factor = S::broadcast(factor + r), row_shift = S::broadcast(shifts + r);
    V even = S::zero(), odd = S::zero();
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; i += 2) {
      const auto probability = [&](float* at) {
        return exp2_of_nonpositive<S>(S::fma(S::load(at), row_factor, row_shift));
      };
      const V a = probability(row + i * S::kLanes), b = probability(row + (i + 1) * S::kLanes);
      S::store(row + i * S::kLanes, each(r, i, a));
      S::store(row + (i + 1) * S::kLanes, each(r, i + 1, b));
      even = S::add(even, a);
      odd = S::add(odd, b);
    }
    float* lanes = sum + r * S::kLanes;
    S::store(lanes, S::fma(S::load(lanes), S::broadcast(alpha + r), S::add(even, odd)));
  }
}
template <typename S, int R>
inline void softmax_rows(float* p, const float* factor, const int64_t* begin, const int64_t* end,
                         float* maximum, float* sum, float* alpha) {
  softmax_rows<S, R>(p, factor, begin, end, maximum, sum, alpha,
                     [](int, int, typename S::V probability) { return probability; });
}

// Factors of rows whose scores are what they are.
alignas(64) constexpr float kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// One unit's view of the current block.
struct FlashBlock {
  const float* k[kTilesPerBlock];  // tiles [Dh, 16]
  const float* v[kTilesPerBlock];  // tiles [16, Dh]
  // Read from the cache itself: values are prefetched while scores are computed, and the next
  // block's keys, if there is one, while values are added. Pages defeat the hardware's own
  // prefetching.
  bool prefetch_values = false;
  const float* const* next_k = nullptr;
  int64_t start;  // position of its first token
};

template <typename S, int R>
void attend_rows(const FlashBlock& block, const AttentionUnit& unit, int64_t row, int64_t window,
                 int64_t dh, const FlashScratch& scratch) {
  const int64_t heads = unit.head_end - unit.head_begin;
  const auto end_of = [&](int64_t r) {
    return least(kBlockTokens, unit.position + r / heads + 1 - block.start);
  };
  const auto begin_of = [&](int64_t r) {
    const int64_t begin = unit.position + r / heads + 1 - window - block.start;
    return begin > 0 ? begin : 0;
  };
  // Rows are in order of position: all tokens that any row of the tile sees.
  const int64_t begin = begin_of(row), end = end_of(row + R - 1);
  if (begin >= end) return;

  constexpr int kVectors = kTileTokens / S::kLanes;
  constexpr int kAccumulators = S::kRegisters * 3 / 4;
  constexpr int kWidest = kAccumulators / (R * kVectors);
  constexpr int kTiles = kWidest >= 4 ? 4 : kWidest >= 2 ? 2 : 1;
  const float* q = scratch.q + row * dh;
  for (int64_t tile = begin / kTileTokens / kTiles * kTiles; tile * kTileTokens < end;
       tile += kTiles)
    score_tiles<S, R, kTiles>(q, dh, block.k + tile,
                              block.prefetch_values ? block.v + tile : nullptr,
                              scratch.p + tile * kTileTokens);

  int64_t row_begin[R], row_end[R];
  for (int r = 0; r < R; ++r) {
    row_begin[r] = begin_of(row + r);
    row_end[r] = end_of(row + r);
  }
  alignas(64) float alpha[S::kLanes];
  softmax_rows<S, R>(scratch.p, kOnes, row_begin, row_end, scratch.chunk.maximum + row,
                     scratch.chunk.sum + row * S::kLanes, alpha);

  constexpr int kWide = kAccumulators / R >= 8 ? 8 : kAccumulators / R >= 4 ? 4 : 2;
  float* out = scratch.chunk.out + row * dh;
  int64_t d = 0;
  for (; d + kWide * S::kLanes <= dh; d += kWide * S::kLanes)
    add_values<S, R, kWide>(scratch.p, alpha, block.v, block.next_k, begin, end, dh, d, out);
  for (; d < dh; d += S::kLanes)
    add_values<S, R, 1>(scratch.p, alpha, block.v, block.next_k, begin, end, dh, d, out);
}

template <typename S>
void attend_block(const FlashBlock& block, const AttentionUnit& unit, int64_t rows, int64_t window,
                  int64_t dh, const FlashScratch& scratch) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6) attend_rows<S, 6>(block, unit, row, window, dh, scratch);
  switch (rows - row) {
    case 1:
      return attend_rows<S, 1>(block, unit, row, window, dh, scratch);
    case 2:
      return attend_rows<S, 2>(block, unit, row, window, dh, scratch);
    case 3:
      return attend_rows<S, 3>(block, unit, row, window, dh, scratch);
    case 4:
      return attend_rows<S, 4>(block, unit, row, window, dh, scratch);
    case 5:
      return attend_rows<S, 5>(block, unit, row, window, dh, scratch);
  }
}

// Tokens [start, last) of a bf16 cache, at most a block of 64, to scratch.k and scratch.v.
inline void widen_bf16(const AttentionArgs& args, const AttentionUnit& unit, int64_t start,
                       int64_t last, const FlashScratch& scratch) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = bf16_head_dim(cache.head_dim);
  constexpr uint32_t kHigh = 0xffff0000u;
  for (int64_t token = start; token < last; token += kKvBlockTokens) {
    const Bf16Block block = bf16_block_of(cache, args.batch, unit.sequence, token, unit.kv_head);
    const auto* k = reinterpret_cast<const uint32_t*>(block.k);
    const auto* v = reinterpret_cast<const uint32_t*>(block.v);
    auto* to_k = reinterpret_cast<uint32_t*>(scratch.k + (token - start) * dh);
    auto* to_v = reinterpret_cast<uint32_t*>(scratch.v + (token - start) * dh);
    for (int64_t pair = 0; pair < dh; ++pair)  // of channels: dh / 2 in each of two tiles
      for (int64_t lane = 0; lane < kTileTokens; ++lane) {
        const uint32_t word = k[pair * kTileTokens + lane];
        to_k[2 * pair * kTileTokens + lane] = word << 16;
        to_k[(2 * pair + 1) * kTileTokens + lane] = word & kHigh;
      }
    for (int64_t d = 0; d < dh; d += 16)
      for (int64_t pair = 0; pair < kKvBlockTokens / 2; ++pair)
        for (int64_t lane = 0; lane < 16; ++lane) {
          const uint32_t word = v[d * 16 + pair * 16 + lane];
          to_v[2 * pair * dh + d + lane] = word << 16;
          to_v[(2 * pair + 1) * dh + d + lane] = word & kHigh;
        }
  }
}

template <typename S>
void attend_unit(const AttentionArgs& args, const AttentionUnit& unit, FlashScratch scratch) {
  using V = typename S::V;
  const KvCacheView& cache = args.cache;
  const bool bf16 = cache.type == KvType::kBF16;
  const int64_t head_dim = cache.head_dim, dh = flash_head_dim(cache);
  const int64_t heads = unit.head_end - unit.head_begin;
  const int64_t rows = (unit.row_end - unit.row_begin) * heads;
  const int64_t context = unit.position + unit.row_end - unit.row_begin;
  const int64_t window = args.sliding_window > 0 ? args.sliding_window : context;
  const int64_t last = end_of_chunks(unit, context);

  // Scores in units of log 2: exp becomes exp2.
  const V scale = S::set1(args.scale * 0x1.715476p+0f);
  for (int64_t row = 0; row < rows; ++row) {
    const float* q = args.q + (unit.row_begin + row / heads) * args.q_stride +
                     (unit.head_begin + row % heads) * head_dim;
    if (dh != head_dim) std::memset(scratch.q + row * dh, 0, dh * sizeof(float));
    for_each_vector<S>(0, head_dim, [&](int64_t d, int64_t n) {
      store<S>(scratch.q + row * dh + d, S::mul(load<S>(q + d, n), scale), n);
    });
  }
  clear_rows<S>(scratch.total, rows, dh);

  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  const int64_t first = begin_of_chunks(unit, window);
  const auto locate = [&](int64_t start) {
    FlashBlock block;
    block.start = start;
    for (int64_t tile = 0; tile < kTilesPerBlock; ++tile) {
      if (bf16) {
        block.k[tile] = scratch.k + tile * kTileTokens * dh;
        block.v[tile] = scratch.v + tile * kTileTokens * dh;
        continue;
      }
      // Tiles past the end are computed together with the last one and masked: any address will do.
      const int64_t wanted = start + tile * kTileTokens;
      const int64_t token = wanted < last ? wanted : (last - 1) / kTileTokens * kTileTokens;
      const int64_t page = pages[token / cache.page_tokens];
      const int64_t at = token % cache.page_tokens * dh;
      block.k[tile] = keys_of(cache, page, unit.kv_head) + at;
      block.v[tile] = values_of(cache, page, unit.kv_head) + at;
    }
    return block;
  };
  const int64_t block_begin = first / kBlockTokens * kBlockTokens;
  FlashBlock block = locate(block_begin);
  for (int64_t start = block_begin; start < last; start += kBlockTokens) {
    const bool more = start + kBlockTokens < last;
    if (start == block_begin || start % kChunkTokens == 0) {
      if (unit.slot >= 0)
        scratch.chunk = part_of<S>(args, scratch.parts, unit, start / kChunkTokens, rows, dh);
      clear_rows<S>(scratch.chunk, rows, dh);
    }
    const FlashBlock next = more ? locate(start + kBlockTokens) : block;
    if (bf16) widen_bf16(args, unit, start, least(last, start + kBlockTokens), scratch);
    block.prefetch_values = rows <= kDirectRows && !bf16;
    block.next_k = block.prefetch_values && more ? next.k : nullptr;
    attend_block<S>(block, unit, rows, window, dh, scratch);
    block = next;
    if (unit.slot < 0 && (!more || (start + kBlockTokens) % kChunkTokens == 0))
      add_chunk<S>(scratch.chunk, rows, dh, scratch.total);
  }
  if (unit.slot < 0) write_rows<S>(args, unit, rows, dh, scratch.total);
}

template <typename S>
void flash_attention(const AttentionArgs& args, const Worker& worker) {
  int64_t bytes = flash_scratch_bytes<S>(args);
  const FlashScratch scratch = flash_scratch<S>(args, args.scratch + worker.index * bytes, &bytes);
  for_each_unit(args, worker,
                [&](const AttentionUnit& unit) { attend_unit<S>(args, unit, scratch); });
}

template <typename S>
void flash_merge(const AttentionArgs& args, const Worker& worker) {
  int64_t bytes = flash_scratch_bytes<S>(args);
  const FlashScratch scratch = flash_scratch<S>(args, args.scratch + worker.index * bytes, &bytes);
  merge_parts<S>(args, worker, flash_head_dim(args.cache), bytes, scratch.total);
}

}  // namespace
}  // namespace whit::cpu
