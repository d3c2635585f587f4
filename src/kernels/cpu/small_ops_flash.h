// Attention over an ISA's vector type S, flash-style: small_ops_attention.h states the arithmetic.
//
// Per unit and block of 64 tokens, row tiles of up to 6 rows (query × head) do
//   scores  [6, 64] = q [6, Dh] · k      16 tokens × 6 rows of accumulators (12 ymm, or 24 zmm for
//   64) softmax           64 lanes a row out     [6, Dh] += p [6, 64] · v     6 rows × 16 (ymm) or
//   64 (zmm) dimensions of accumulators
// With more than kDirectRows rows an f16 block is converted to f32 once for all of them; with fewer
// (decode) elements are converted as they are loaded. Both orders of work give the same bits.
// Bound: per row and token 2·Dh multiply-adds and one exp (about 12 instructions a vector), so at
// Dh = 64 the multiply-adds are 85–90 % of the instructions that use the arithmetic ports.
#pragma once

#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu {
namespace {

constexpr int64_t kTilesPerBlock = kBlockTokens / kTileTokens;
constexpr int64_t kRowTile = 6;
constexpr int64_t kDirectRows = 8;

// To L2: a whole phase lies between this and the use. Prefetches to L1 would hold the few places
// for its misses, and the phase's own loads wait behind them (Zen 4: twice the time from memory).
inline void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

struct FlashScratch {
  float *q, *out;  // [rows, Dh]
  float *k, *v;    // one block as f32: [4, Dh, 16], [64, Dh]
  float* p;        // [6, 64] scores, then probabilities
  float* sum;      // [rows, lanes] partial sums of a row, one per lane
  float* maximum;  // [rows], and the rest of a vector
};

inline int64_t flash_rows(const AttentionArgs& args) {
  return query_block(args) * (args.heads / args.cache.kv_heads);
}

template <typename S>
inline int64_t flash_scratch_bytes(const AttentionArgs& args) {
  const int64_t dh = args.cache.head_dim, rows = flash_rows(args);
  const int64_t floats = 2 * rows * dh + 2 * kBlockTokens * dh + kRowTile * kBlockTokens +
                         rows * S::kLanes + rows + S::kLanes;
  return (floats * static_cast<int64_t>(sizeof(float)) + 63) / 64 * 64;
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
template <typename S, int R, int N, typename T>
inline void score_tiles(const float* q, int64_t dh, const T* const* k, const T* const* ahead,
                        float* p) {
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
          return S::load_element(k[i / kVectors] + d * kTileTokens + i % kVectors * S::kLanes);
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
template <typename S, int R, int N, typename T>
inline void add_values(const float* p, const float* alpha, const T* const* v, const T* const* ahead,
                       int64_t begin, int64_t end, int64_t dh, int64_t d, float* out) {
  constexpr int64_t kLineElements = 64 / sizeof(T);
  typename S::V acc[R][N];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
      acc[r][i] = S::mul(S::load(out + r * dh + d + i * S::kLanes), S::broadcast(alpha + r));
  for (int64_t tile = begin / kTileTokens; tile * kTileTokens < end; ++tile) {
    const int64_t first = tile * kTileTokens;
    const int64_t from = begin > first ? begin : first, to = least(end, first + kTileTokens);
    const T* row = v[tile] + (from - first) * dh + d;
    for (int64_t j = from; j < to; ++j, row += dh) {
      if (ahead != nullptr)
#pragma GCC unroll 8
        for (int64_t i = 0; i < N * S::kLanes; i += kLineElements)
          prefetch(ahead[tile] + (row - v[tile]) + i);
      add_products<S, R, N>([&](int r) { return S::broadcast(p + r * kBlockTokens + j); },
                            [&](int i) { return S::load_element(row + i * S::kLanes); },
                            multiply_add<S>, acc);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) S::store(out + r * dh + d + i * S::kLanes, acc[r][i]);
}

// Turns R rows of scores into probabilities relative to their new maxima and writes each row's α.
// Tokens outside [begin[r], end[r]) are masked. While a row has seen no token its maximum is −∞,
// its sum and output are 0 and stay so.
template <typename S, int R>
inline void softmax_rows(float* p, const int64_t* begin, const int64_t* end, float* maximum,
                         float* sum, float* alpha) {
  constexpr int kVectors = kBlockTokens / S::kLanes;
  using V = typename S::V;
  const V old_maximum = S::load(maximum);
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
    const float largest = S::reduce_max(s[0]);
    maximum[r] = largest > maximum[r] ? largest : maximum[r];
  }
  // Finite, so that masked scores are infinitely far below it also when nothing has been seen.
  const V shift = S::max(S::load(maximum), S::set1(-FLT_MAX));
  alignas(64) float shifts[S::kLanes];
  S::store(shifts, shift);
  S::store(alpha, exp2_of_nonpositive<S>(S::sub(old_maximum, shift)));
  for (int r = 0; r < R; ++r) {
    float* row = p + r * kBlockTokens;
    const V row_shift = S::broadcast(shifts + r);
    V even = S::zero(), odd = S::zero();
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; i += 2) {
      const V a = exp2_of_nonpositive<S>(S::sub(S::load(row + i * S::kLanes), row_shift));
      const V b = exp2_of_nonpositive<S>(S::sub(S::load(row + (i + 1) * S::kLanes), row_shift));
      S::store(row + i * S::kLanes, a);
      S::store(row + (i + 1) * S::kLanes, b);
      even = S::add(even, a);
      odd = S::add(odd, b);
    }
    float* lanes = sum + r * S::kLanes;
    S::store(lanes, S::fma(S::load(lanes), S::broadcast(alpha + r), S::add(even, odd)));
  }
}

// One unit's view of the current block.
template <typename T>
struct FlashBlock {
  const T* k[kTilesPerBlock];  // tiles [Dh, 16]
  const T* v[kTilesPerBlock];  // tiles [16, Dh]
  // Read from the cache itself: values are prefetched while scores are computed, and the next
  // block's keys, if there is one, while values are added. Pages defeat the hardware's own
  // prefetching.
  bool prefetch_values = false;
  const T* const* next_k = nullptr;
  int64_t start;  // position of its first token
};

template <typename S, int R, typename T>
void attend_rows(const FlashBlock<T>& block, const AttentionUnit& unit, int64_t row, int64_t window,
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
  softmax_rows<S, R>(scratch.p, row_begin, row_end, scratch.maximum + row,
                     scratch.sum + row * S::kLanes, alpha);

  constexpr int kWide = kAccumulators / R >= 8 ? 8 : kAccumulators / R >= 4 ? 4 : 2;
  float* out = scratch.out + row * dh;
  int64_t d = 0;
  for (; d + kWide * S::kLanes <= dh; d += kWide * S::kLanes)
    add_values<S, R, kWide>(scratch.p, alpha, block.v, block.next_k, begin, end, dh, d, out);
  for (; d < dh; d += S::kLanes)
    add_values<S, R, 1>(scratch.p, alpha, block.v, block.next_k, begin, end, dh, d, out);
}

template <typename S, typename T>
void attend_block(const FlashBlock<T>& block, const AttentionUnit& unit, int64_t rows,
                  int64_t window, int64_t dh, const FlashScratch& scratch) {
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

template <typename S, typename T>
void attend_unit(const AttentionArgs& args, const AttentionUnit& unit,
                 const FlashScratch& scratch) {
  using V = typename S::V;
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, heads = unit.head_end - unit.head_begin;
  const int64_t rows = (unit.row_end - unit.row_begin) * heads;
  const int64_t last = unit.position + unit.row_end - unit.row_begin;
  const int64_t window = args.sliding_window > 0 ? args.sliding_window : last;
  const auto offset = [&](int64_t row, int64_t stride) {
    return (unit.row_begin + row / heads) * stride + (unit.head_begin + row % heads) * dh;
  };

  // Scores in units of log 2: exp becomes exp2.
  const V scale = S::set1(args.scale * 0x1.715476p+0f);
  for (int64_t row = 0; row < rows; ++row) {
    const float* q = args.q + offset(row, args.q_stride);
    for (int64_t d = 0; d < dh; d += S::kLanes) {
      S::store(scratch.q + row * dh + d, S::mul(S::load(q + d), scale));
      S::store(scratch.out + row * dh + d, S::zero());
    }
    scratch.maximum[row] = -__builtin_inff();
    S::store(scratch.sum + row * S::kLanes, S::zero());
  }
  S::store(scratch.maximum + rows, S::zero());  // read with the last rows, not used

  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  const int64_t first = unit.position + 1 > window ? unit.position + 1 - window : 0;
  const auto locate = [&](int64_t start) {
    FlashBlock<T> block;
    block.start = start;
    for (int64_t tile = 0; tile < kTilesPerBlock; ++tile) {
      // Tiles past the end are computed together with the last one and masked: any address will do.
      const int64_t wanted = start + tile * kTileTokens;
      const int64_t token = wanted < last ? wanted : (last - 1) / kTileTokens * kTileTokens;
      const int64_t page = pages[token / cache.page_tokens];
      const int64_t at =
          ((page * cache.kv_heads + unit.kv_head) * cache.page_tokens + token % cache.page_tokens) *
          dh;
      block.k[tile] = static_cast<const T*>(cache.k) + at;
      block.v[tile] = static_cast<const T*>(cache.v) + at;
    }
    return block;
  };
  const bool direct = sizeof(T) == sizeof(float) || rows <= kDirectRows;
  FlashBlock<T> block = locate(first / kBlockTokens * kBlockTokens);
  for (int64_t start = block.start; start < last; start += kBlockTokens) {
    const bool more = start + kBlockTokens < last;
    const FlashBlock<T> next = more ? locate(start + kBlockTokens) : block;
    if (direct) {
      block.prefetch_values = rows <= kDirectRows;
      block.next_k = rows <= kDirectRows && more ? next.k : nullptr;
      attend_block<S>(block, unit, rows, window, dh, scratch);
      block = next;
      continue;
    }
    FlashBlock<float> converted;
    converted.start = start;
    for (int64_t tile = 0; tile < kTilesPerBlock; ++tile) {
      float* k = scratch.k + tile * kTileTokens * dh;
      float* v = scratch.v + tile * kTileTokens * dh;
      converted.k[tile] = k;
      converted.v[tile] = v;
      if (start + tile * kTileTokens >= last) continue;
      for (int64_t i = 0; i < kTileTokens * dh; i += S::kLanes) {
        S::store(k + i, S::load_element(block.k[tile] + i));
        S::store(v + i, S::load_element(block.v[tile] + i));
      }
    }
    attend_block<S>(converted, unit, rows, window, dh, scratch);
    block = next;
  }

  for (int64_t row = 0; row < rows; ++row) {
    const V inverse = S::set1(1.0f / S::reduce_add(S::load(scratch.sum + row * S::kLanes)));
    float* out = args.out + offset(row, args.out_stride);
    // Adding +0 gives every zero the same sign, whichever no-op terms it met.
    for (int64_t d = 0; d < dh; d += S::kLanes)
      S::store(out + d, S::add(S::mul(S::load(scratch.out + row * dh + d), inverse), S::zero()));
  }
}

template <typename S, typename T>
void flash_attention(const AttentionArgs& args, const Worker& worker) {
  const int64_t dh = args.cache.head_dim, rows = flash_rows(args);
  FlashScratch scratch;
  scratch.q = reinterpret_cast<float*>(args.scratch + worker.index * flash_scratch_bytes<S>(args));
  scratch.out = scratch.q + rows * dh;
  scratch.k = scratch.out + rows * dh;
  scratch.v = scratch.k + kBlockTokens * dh;
  scratch.p = scratch.v + kBlockTokens * dh;
  scratch.sum = scratch.p + kRowTile * kBlockTokens;
  scratch.maximum = scratch.sum + rows * S::kLanes;
  for_each_attention_unit(
      args, worker, [&](const AttentionUnit& unit) { attend_unit<S, T>(args, unit, scratch); });
}

}  // namespace
}  // namespace whit::cpu
