// Attention over caches of codes (ops/kv_layout.h) with dot products of pairs of int16, over an
// ISA's vector type S.
//
// As small_ops_attention.h states, but for tokens read by their codes c, where per query and head,
// with codes of 16 bits,
//   s_j = a · scale_j · Σ_d u_d · c_jd
//         u = q · scale, rounded to int16 with a = ‖q · scale‖ / 32500
//   o_d = o_d · α + w · Σ_j t_j · c_jd
//         t_j = p_j · scale_j rounded to int16 with w = max(max_j (p_j · scale_j) / 32767,
//         Σ_j (p_j · scale_j) / 262100), for each block of 64
// and of 8 and 4
//   s_j = a · scale_j · Σ_d u_d · c_jd + a · minimum_j · Σ_d u_d           keys per token
//         u = q · scale, rounded to int16 with a = max|u| / 32767
//   s_j = a · Σ_d u_d · c_jd + Σ_d q_d · scale · minimum_d                 keys per channel
//         u_d = q_d · scale · scale_d, for each block of 32 tokens, rounded alike
//   o_d = o_d · α + w · Σ_j t_j · c_jd + Σ_j p_j · minimum_j               values
//         t_j = p_j · scale_j rounded to int16 with w = max_j (p_j · scale_j) / 32767, for each
//         block of 64
// Sums of codes are exact in int32, so that tiles of any shape agree; l sums the unrounded p.
// Queries and weights lose 2⁻¹⁶ of a row's norm, or largest, and no more than the codes did. Tokens
// that are read exactly (the block of 32 that the query is in, in a cache with tails) come last and
// are added in f32.
//
// Bound: the dot instructions do twice the multiply-adds of an f32 FMA; with more than kDirectRows
// rows codes of 8 and 4 bits are widened to int16 once per block.
#pragma once

#include "kernels/cpu/small_ops_codes_write.h"
#include "kernels/cpu/small_ops_flash.h"

namespace whit::cpu {
namespace {

constexpr int64_t kTilesPerHalf = kKvBlockTokens / kTileTokens;

// What a kernel reads: codes of kBits, kAffine with a scale and a minimum in f16, else with a scale
// in f32.
template <int bits, bool affine>
struct CodeFormat {
  static constexpr int kBits = bits;
  static constexpr bool kAffine = affine;
};
using Words = CodeFormat<16, false>;
using Widened = CodeFormat<16, true>;

struct CodesScratch {
  std::byte* parts;
  float* q;                // [rows, padded Dh]
  int16_t* queries;        // [2 halves, rows, padded Dh]
  float *factor, *offset;  // [2 halves, rows] a and what is added, or multiplies the minima
  float* p;                // [6, 64] scores, then probabilities
  int16_t* words;          // [6, 64] t
  int16_t *k, *v;          // one block widened: [4 tiles, padded Dh · 16]
  float *own_k, *own_v;    // the exact block: [2, padded Dh, 16], [32, padded Dh]
  RowState chunk, total;   // of the chunk at hand, and of those before it
};

template <typename S>
inline CodesScratch codes_scratch(const AttentionArgs& args, std::byte* base, int64_t* bytes) {
  const int64_t dh = padded_head_dim(args.cache.head_dim), rows = flash_rows(args);
  int64_t at = 0;
  const auto take = [&](int64_t count, int64_t size) {
    std::byte* result = base == nullptr ? nullptr : base + at;
    at += (count * size + 63) / 64 * 64;
    return result;
  };
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count, 4)); };
  const auto words = [&](int64_t count) { return reinterpret_cast<int16_t*>(take(count, 2)); };
  CodesScratch scratch;
  scratch.parts = take(part_floats<S>(args, dh), 4);
  scratch.q = floats(rows * dh);
  scratch.queries = words(2 * rows * dh);
  scratch.factor = floats(2 * rows);
  scratch.offset = floats(2 * rows);
  scratch.p = floats(kRowTile * kBlockTokens);
  scratch.words = words(kRowTile * kBlockTokens);
  scratch.k = words(kBlockTokens * dh);
  scratch.v = words(kBlockTokens * dh);
  scratch.own_k = floats(kKvBlockTokens * dh);
  scratch.own_v = floats(kKvBlockTokens * dh);
  scratch.chunk = row_state<S>(floats(row_state_floats<S>(rows, dh)), rows, dh);
  scratch.total = row_state<S>(floats(row_state_floats<S>(rows, dh)), rows, dh);
  *bytes = at;
  return scratch;
}

// One unit's view of 64 tokens: `tiles` tiles of codes, then, where own ≥ 0, exact ones from tile
// own on.
struct CodesBlock {
  int64_t start = 0;
  int64_t tiles = 0;
  int64_t own = -1;
  const uint8_t *k[kTilesPerBlock], *v[kTilesPerBlock];
  // [16] of tokens: f16, or f32 and no minima where codes are not affine.
  const void *k_scale[kTilesPerBlock], *v_scale[kTilesPerBlock];
  const uint16_t *k_minimum[kTilesPerBlock], *v_minimum[kTilesPerBlock];
  const uint16_t* channels[kTilesPerBlock / kTilesPerHalf] = {};  // scales and minima, kChannel
  const CodesBlock* next = nullptr;                               // to prefetch
};

// Always inlined: g++ drops calls of a function that does nothing but prefetch.
inline __attribute__((always_inline)) void prefetch_scales(const CodesBlock& block, int64_t dh) {
  constexpr int64_t kTokenBytes = kKvBlockTokens * 4;  // scales and minima in f16, or scales in f32
  for (int64_t half = 0; half < kTilesPerBlock / kTilesPerHalf; ++half) {
    const auto at = [](const void* p, int64_t byte) { return static_cast<const char*>(p) + byte; };
    for (int64_t i = 0; i < kTokenBytes; i += 64)
      prefetch(at(block.v_scale[half * kTilesPerHalf], i));
    const uint16_t* channels = block.channels[half];
    const void* keys = channels;
    if (channels == nullptr) keys = block.k_scale[half * kTilesPerHalf];
    const int64_t bytes = channels == nullptr ? kTokenBytes : 4 * dh;
    for (int64_t i = 0; i < bytes; i += 64) prefetch(at(keys, i));
  }
}

// Scales of a tile's tokens from `lane` on.
template <typename S, typename C>
inline typename S::V token_scales(const void* scales, int64_t lane) {
  if constexpr (C::kAffine) return S::load_element(static_cast<const uint16_t*>(scales) + lane);
  return S::load(static_cast<const float*>(scales) + lane);
}

alignas(64) constexpr uint16_t kHalfOnes[kTileTokens] = {
    0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00,
    0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x3c00};

// x times multiplier, rounded, and the sum of that.
template <typename S, typename Value>
inline int32_t round_row(const Value& value, int64_t dh, float multiplier, int16_t* out) {
  const typename S::V factor = S::set1(multiplier);
  typename S::I sum = S::zero_int();
  for (int64_t d = 0; d < dh; d += S::kWordVectors * S::kLanes) {
    typename S::I vectors[S::kWordVectors];
    for (int i = 0; i < S::kWordVectors; ++i) {
      vectors[i] = S::to_int(S::mul(value(d + i * S::kLanes), factor));
      sum = S::add_int(sum, vectors[i]);
    }
    S::store_words(out + d, vectors);
  }
  return S::reduce_add_int(sum);
}

// u and a of each row of q [rows, dh] for codes of 16 bits.
template <typename S>
void round_queries(const float* q, int64_t rows, int64_t dh, int16_t* u, float* factor) {
  constexpr float kNorm = 32500.0f;
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = q + row * dh;
    const float size = norm<S>(from, dh);
    round_row<S>([&](int64_t d) { return S::load(from + d); }, dh,
                 size > 1e-30f ? kNorm / size : 0.0f, u + row * dh);
    factor[row] = size <= 1e-30f ? 1.0f : size / kNorm;  // not 0, which no maximum survives
  }
}

// u, a and the offset's factor of each row of q [rows, dh] for other codes; channels as in
// CodesBlock, or null.
template <typename S>
void round_queries(const float* q, int64_t rows, int64_t dh, const uint16_t* channels, int16_t* u,
                   float* factor, float* offset) {
  using V = typename S::V;
  // Sums of dh products of codes up to 255 stay in int32.
  const float limit = static_cast<float>(least(32767, INT32_MAX / (255 * dh)));
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = q + row * dh;
    const auto value = [&](int64_t d) {
      const V x = S::load(from + d);
      return channels == nullptr ? x : S::mul(x, S::load_element(channels + d));
    };
    typename S::I largest = S::zero_int();
    V constant = S::zero();
    for (int64_t d = 0; d < dh; d += S::kLanes) {
      largest = S::max_magnitude(largest, value(d));
      if (channels != nullptr)
        constant = S::fma(S::load(from + d), S::load_element(channels + dh + d), constant);
    }
    const float magnitude = S::reduce_max_magnitude(largest);
    const int32_t sum =
        round_row<S>(value, dh, magnitude > 1e-30f ? limit / magnitude : 0.0f, u + row * dh);
    factor[row] = magnitude / limit;
    offset[row] =
        channels == nullptr ? factor[row] * static_cast<float>(sum) : S::reduce_add(constant);
  }
}

// Whether sums of R rows and n vectors fit beside what add_products holds, and a product.
template <typename S, int R>
constexpr bool registers_suffice(int n) {
  return R * n + (R < n ? R : n) + 2 <= S::kRegisters;
}

// Scores of R rows with N tiles of codes; of 16 bits without the rows' factor.
template <typename S, int R, int N, typename C>
inline void score_codes(const int16_t* u, int64_t dh, const uint8_t* const* k,
                        const uint8_t* const* ahead, const void* const* scale,
                        const uint16_t* const* minimum, const float* factor, const float* offset,
                        float* p) {
  constexpr int kBits = C::kBits;
  constexpr int kVectors = N * S::kUnitVectors;
  typename S::I acc[R][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) acc[r][i] = S::zero_int();
  for (int64_t group = 0; group < dh / 8; ++group) {
    if (ahead != nullptr)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
        for (int line = 0; line < 16 * kBits; line += 64)
          prefetch(ahead[n] + group * 16 * kBits + line);
#pragma GCC unroll 4
    for (int unit = 0; unit < 4; ++unit) {
      add_products<S, R, kVectors>(
          [&](int r) { return S::broadcast_pair(u + r * dh + group * 8 + unit * 2); },
          [&](int i) {
            return S::template codes<kBits>(k[i / S::kUnitVectors] + group * 16 * kBits, unit,
                                            i % S::kUnitVectors);
          },
          S::madd, acc);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const int64_t lane = i % S::kUnitVectors * S::kLanes;
      typename S::V score = S::to_float(acc[r][i]),
                    a = token_scales<S, C>(scale[i / S::kUnitVectors], lane);
      if constexpr (C::kAffine) {
        a = S::mul(a, S::broadcast(factor + r));
        const typename S::V b =
            S::mul(S::load_element(minimum[i / S::kUnitVectors] + lane), S::broadcast(offset + r));
        score = S::fma(score, a, b);
      } else {
        score = S::mul(score, a);
      }
      S::store(p + r * kBlockTokens + i * S::kLanes, score);
    }
}

// softmax_rows, and t and w of R rows of a block with codes of 16 bits; p becomes p · scale. Tokens
// not seen, and those beyond the text, whose scales may be anything, weigh nothing.
template <typename S, int R>
inline void softmax_weights(float* p, const CodesBlock& block, const float* factor,
                            const int64_t* begin, const int64_t* end, float* maximum, float* sums,
                            float* alpha, int16_t* words, float* w) {
  using V = typename S::V;
  constexpr int kTileVectors = kTileTokens / S::kLanes;
  V largest[R], sum[R];
  softmax_rows<S, R>(p, factor, begin, end, maximum, sums, alpha, [&](int r, int i, V probability) {
    V weight = S::mul(probability, token_scales<S, Words>(block.v_scale[i / kTileVectors],
                                                          i % kTileVectors * S::kLanes));
    if (begin[r] > 0 || end[r] < kBlockTokens) weight = S::zero_where_zero(weight, probability);
    largest[r] = i == 0 ? weight : S::max(largest[r], weight);
    sum[r] = i == 0 ? weight : S::add(sum[r], weight);
    return weight;
  });
  const V all = S::combine_rows(sum, [](V a, V b) { return S::add(a, b); });
  const V most = S::combine_rows(largest, [](V a, V b) { return S::max(a, b); });
  const V size =
      S::max(S::mul(most, S::set1(1.0f / 32767.0f)), S::mul(all, S::set1(1.0f / 262100.0f)));
  alignas(64) float multiplier[S::kLanes];
  S::store(multiplier, S::zero_below(S::div(S::set1(1.0f), size), size, 1e-30f));
  S::store(w, size);
  for (int r = 0; r < R; ++r)
    round_row<S>([&](int64_t j) { return S::load(p + r * kBlockTokens + j); }, kBlockTokens,
                 multiplier[r], words + r * kBlockTokens);
}

// t, w and Σ p·minimum of R rows over tiles [begin, end).
template <typename S, int R>
inline void round_weights(const float* p, const CodesBlock& block, int64_t begin, int64_t end,
                          int16_t* words, float* w, float* constant) {
  using V = typename S::V;
  constexpr int kVectors = kTileTokens / S::kLanes;
  for (int r = 0; r < R; ++r) {
    alignas(64) float weights[kBlockTokens];
    V largest = S::zero(), sum = S::zero();
    for (int64_t tile = begin; tile < end; ++tile)
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) {
        const int64_t at = tile * kTileTokens + i * S::kLanes;
        const V weight = S::load(p + r * kBlockTokens + at);
        // Tokens not seen, and those beyond the text, whose scales may be anything, weigh nothing.
        const V x = S::zero_where_zero(
            S::mul(weight, token_scales<S, Widened>(block.v_scale[tile], i * S::kLanes)), weight);
        const V offset = S::zero_where_zero(
            S::mul(weight, S::load_element(block.v_minimum[tile] + i * S::kLanes)), weight);
        S::store(weights + at, x);
        largest = S::max(x, largest);
        sum = S::add(sum, offset);
      }
    const float magnitude = S::reduce_max(largest);
    const V multiplier = S::set1(magnitude > 1e-30f ? 32767.0f / magnitude : 0.0f);
    for (int64_t at = begin * kTileTokens; at < end * kTileTokens; at += kTileTokens) {
      typename S::I vectors[S::kWordVectors];
#pragma GCC unroll 2
      for (int i = 0; i < S::kWordVectors; ++i)
        vectors[i] = S::to_int(S::mul(S::load(weights + at + i * S::kLanes), multiplier));
      S::store_words(words + r * kBlockTokens + at, vectors);
    }
    w[r] = magnitude * (1.0f / 32767.0f);
    constant[r] = S::reduce_add(sum);
  }
}

// out = out · α + w · Σ t·c + constant over tiles [begin, end), for N chunks of 16 dimensions; the
// constant of affine codes alone.
template <typename S, int R, int N, typename C>
inline void add_codes(const int16_t* words, const float* w, const float* constant,
                      const float* alpha, const uint8_t* const* v, const uint8_t* const* ahead,
                      int64_t begin, int64_t end, int64_t dh, int64_t chunk, float* out) {
  constexpr int kBits = C::kBits;
  constexpr int kVectors = N * S::kUnitVectors;
  typename S::I acc[R][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) acc[r][i] = S::zero_int();
  for (int64_t tile = begin; tile < end; ++tile)
    for (int64_t group = 0; group < 2; ++group) {
      const int64_t at = (chunk * 2 + group) * 16 * kBits;
      if (ahead != nullptr)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
          for (int line = 0; line < 16 * kBits; line += 64)
            prefetch(ahead[tile] + at + n * 32 * kBits + line);
#pragma GCC unroll 4
      for (int unit = 0; unit < 4; ++unit) {
        add_products<S, R, kVectors>(
            [&](int r) {
              return S::broadcast_pair(words + r * kBlockTokens + tile * kTileTokens + group * 8 +
                                       unit * 2);
            },
            [&](int i) {
              return S::template codes<kBits>(v[tile] + at + i / S::kUnitVectors * 32 * kBits, unit,
                                              i % S::kUnitVectors);
            },
            S::madd, acc);
      }
    }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      float* to = out + r * dh + chunk * 16 + i * S::kLanes;
      typename S::V kept = S::mul(S::load(to), S::broadcast(alpha + r));
      if constexpr (C::kAffine)
        kept = S::fma(S::load(to), S::broadcast(alpha + r), S::broadcast(constant + r));
      S::store(to, S::fma(S::to_float(acc[r][i]), S::broadcast(w + r), kept));
    }
}

template <typename S, int R, typename C>
void attend_code_rows(const CodesBlock& block, const AttentionUnit& unit, int64_t row,
                      int64_t all_rows, int64_t window, int64_t dh, const CodesScratch& scratch) {
  const int64_t heads = unit.head_end - unit.head_begin;
  int64_t row_begin[R], row_end[R];
  int64_t seen = unit.position + row / heads + 1 - block.start, head = row % heads;
  for (int r = 0; r < R; ++r) {
    row_begin[r] = seen > window ? seen - window : 0;
    row_end[r] = least(kBlockTokens, seen);
    if (++head == heads) {
      head = 0;
      ++seen;
    }
  }
  // Rows are in order of position: all tokens that any row of the tile sees.
  const int64_t begin = row_begin[0], end = row_end[R - 1];
  if (begin >= end) return;
  if (block.next != nullptr) prefetch_scales(*block.next, dh);
  const int64_t first_tile = begin / kTileTokens;
  const int64_t code_tiles = least(block.tiles, (end + kTileTokens - 1) / kTileTokens);

  const auto score = [&]<int kTiles>(int64_t tile) {
    const int64_t half = block.channels[0] == nullptr ? 0 : tile / kTilesPerHalf * all_rows;
    score_codes<S, R, kTiles, C>(scratch.queries + (half + row) * dh, dh, block.k + tile,
                                 block.next != nullptr ? block.v + tile : nullptr,
                                 block.k_scale + tile, block.k_minimum + tile,
                                 scratch.factor + half + row, scratch.offset + half + row,
                                 scratch.p + tile * kTileTokens);
  };
  constexpr int kTiles = registers_suffice<S, R>(2 * S::kUnitVectors) ? 2 : 1;
  constexpr bool kWholeBlocks = registers_suffice<S, R>(kTilesPerBlock * S::kUnitVectors);
  if (kWholeBlocks && first_tile == 0 && code_tiles == kTilesPerBlock &&
      block.channels[0] == nullptr)
    score.template operator()<kWholeBlocks ? kTilesPerBlock : 1>(0);
  else
    for (int64_t tile = first_tile / kTiles * kTiles; tile < code_tiles; tile += kTiles)
      score.template operator()<kTiles>(tile);
  const float* own_k[kTilesPerBlock];
  const float* own_v[kTilesPerBlock];
  const bool own = block.own >= 0 && end > block.own * kTileTokens;
  if (own) {
    for (int64_t i = 0; i < kTilesPerHalf; ++i) {
      own_k[block.own + i] = scratch.own_k + i * kTileTokens * dh;
      own_v[block.own + i] = scratch.own_v + i * kTileTokens * dh;
    }
    constexpr int kVectors = kTileTokens / S::kLanes;
    constexpr int kOwnTiles = R * 2 * kVectors <= S::kRegisters * 3 / 4 ? 2 : 1;
    for (int64_t tile = block.own; tile < block.own + kTilesPerHalf; tile += kOwnTiles)
      score_tiles<S, R, kOwnTiles>(scratch.q + row * dh, dh, own_k + tile, nullptr,
                                   scratch.p + tile * kTileTokens);
  }

  alignas(64) float alpha[S::kLanes];
  alignas(64) float w[S::kLanes];
  float constant[R] = {};
  float* maximum = scratch.chunk.maximum + row;
  float* sum = scratch.chunk.sum + row * S::kLanes;
  if constexpr (C::kAffine)
    softmax_rows<S, R>(scratch.p, kOnes, row_begin, row_end, maximum, sum, alpha);
  else
    softmax_weights<S, R>(scratch.p, block, scratch.factor + row, row_begin, row_end, maximum, sum,
                          alpha, scratch.words, w);

  float* out = scratch.chunk.out + row * dh;
  if (first_tile < code_tiles) {
    if constexpr (C::kAffine)
      round_weights<S, R>(scratch.p, block, first_tile, code_tiles, scratch.words, w, constant);
    const uint8_t* const* ahead = block.next != nullptr ? block.next->k : nullptr;
    constexpr int kWide = registers_suffice<S, R>(4 * S::kUnitVectors)   ? 4
                          : registers_suffice<S, R>(2 * S::kUnitVectors) ? 2
                                                                         : 1;
    const int64_t chunks = dh / 16;
    int64_t chunk = 0;
    for (; chunk + kWide <= chunks; chunk += kWide)
      add_codes<S, R, kWide, C>(scratch.words, w, constant, alpha, block.v, ahead, first_tile,
                                code_tiles, dh, chunk, out);
    for (; chunk < chunks; ++chunk)
      add_codes<S, R, 1, C>(scratch.words, w, constant, alpha, block.v, ahead, first_tile,
                            code_tiles, dh, chunk, out);
    for (int r = 0; r < R; ++r) alpha[r] = 1.0f;
  }
  if (own) {
    const int64_t from = block.own * kTileTokens > begin ? block.own * kTileTokens : begin;
    constexpr int kWide = S::kRegisters * 3 / 4 / R >= 4 ? 4 : 2;
    int64_t d = 0;
    for (; d + kWide * S::kLanes <= dh; d += kWide * S::kLanes)
      add_values<S, R, kWide>(scratch.p, alpha, own_v, nullptr, from, end, dh, d, out);
    for (; d < dh; d += S::kLanes)
      add_values<S, R, 1>(scratch.p, alpha, own_v, nullptr, from, end, dh, d, out);
  }
}

template <typename S, typename C>
void attend_codes(const CodesBlock& block, const AttentionUnit& unit, int64_t rows, int64_t window,
                  int64_t dh, const CodesScratch& scratch) {
  int64_t row = 0;
  for (; row + 6 <= rows; row += 6)
    attend_code_rows<S, 6, C>(block, unit, row, rows, window, dh, scratch);
  switch (rows - row) {
    case 1:
      return attend_code_rows<S, 1, C>(block, unit, row, rows, window, dh, scratch);
    case 2:
      return attend_code_rows<S, 2, C>(block, unit, row, rows, window, dh, scratch);
    case 3:
      return attend_code_rows<S, 3, C>(block, unit, row, rows, window, dh, scratch);
    case 4:
      return attend_code_rows<S, 4, C>(block, unit, row, rows, window, dh, scratch);
    case 5:
      return attend_code_rows<S, 5, C>(block, unit, row, rows, window, dh, scratch);
  }
}

// The unit's own block, tokens [own, last), as f32 tiles; zeros beyond.
template <typename S>
void load_own_block(const AttentionArgs& args, const AttentionUnit& unit, int64_t own, int64_t last,
                    int64_t dh, const CodesScratch& scratch) {
  std::memset(scratch.own_k, 0, kKvBlockTokens * dh * sizeof(float));
  std::memset(scratch.own_v, 0, kKvBlockTokens * dh * sizeof(float));
  alignas(64) float row[kLargestCodedHead];
  for (int64_t token = own; token < last; ++token) {
    const int64_t at = token - own;
    load_exact<S>(args.cache, args.batch, args.v, args.v_stride, args.cache.v_tails, unit.sequence,
                  token, unit.kv_head, row);
    std::memcpy(scratch.own_v + at * dh, row, args.cache.head_dim * sizeof(float));
    load_exact<S>(args.cache, args.batch, args.k, args.k_stride, args.cache.k_tails, unit.sequence,
                  token, unit.kv_head, row);
    float* to = scratch.own_k + at / kTileTokens * kTileTokens * dh + at % kTileTokens;
    for (int64_t d = 0; d < args.cache.head_dim; ++d) to[d * kTileTokens] = row[d];
  }
}

// Widens a block's codes to int16 in scratch and points it there.
template <typename S, int kBits>
void widen(CodesBlock& block, int64_t dh, const CodesScratch& scratch) {
  for (int64_t tile = 0; tile < block.tiles; ++tile)
    for (const bool keys : {true, false}) {
      const uint8_t* from = keys ? block.k[tile] : block.v[tile];
      int16_t* to = (keys ? scratch.k : scratch.v) + tile * kTileTokens * dh;
      for (int64_t group = 0; group < dh / 8; ++group)
#pragma GCC unroll 4
        for (int unit = 0; unit < 4; ++unit)
#pragma GCC unroll 2
          for (int i = 0; i < S::kUnitVectors; ++i)
            S::store_words_raw(to + group * 128 + unit * 32 + i * 16,
                               S::template codes<kBits>(from + group * 16 * kBits, unit, i));
      (keys ? block.k[tile] : block.v[tile]) = reinterpret_cast<const uint8_t*>(to);
    }
}

template <typename S, typename C>
void attend_unit_codes(const AttentionArgs& args, const AttentionUnit& unit, CodesScratch scratch) {
  using V = typename S::V;
  constexpr int kBits = C::kBits;
  const KvCacheView& cache = args.cache;
  const int64_t head_dim = cache.head_dim, dh = padded_head_dim(head_dim);
  const int64_t heads = unit.head_end - unit.head_begin;
  const int64_t rows = (unit.row_end - unit.row_begin) * heads;
  const int64_t context = unit.position + unit.row_end - unit.row_begin;
  const int64_t window = args.sliding_window > 0 ? args.sliding_window : context;
  const int64_t last = end_of_chunks(unit, context);
  const int64_t own = own_block(args, unit);
  const bool by_channel = cache.key_layout == KeyLayout::kChannel;

  // Scores in units of log 2: exp becomes exp2.
  const V scale = S::set1(args.scale * 0x1.715476p+0f);
  for (int64_t row = 0; row < rows; ++row) {
    const float* q = args.q + (unit.row_begin + row / heads) * args.q_stride +
                     (unit.head_begin + row % heads) * head_dim;
    std::memset(scratch.q + row * dh, 0, dh * sizeof(float));
    for_each_vector<S>(0, head_dim, [&](int64_t d, int64_t n) {
      store<S>(scratch.q + row * dh + d, S::mul(load<S>(q + d, n), scale), n);
    });
  }
  clear_rows<S>(scratch.total, rows, dh);
  if constexpr (!C::kAffine)
    round_queries<S>(scratch.q, rows, dh, scratch.queries, scratch.factor);
  else if (!by_channel)
    round_queries<S>(scratch.q, rows, dh, nullptr, scratch.queries, scratch.factor, scratch.offset);
  if (own < last) load_own_block<S>(args, unit, own, last, dh, scratch);

  const int32_t* pages = args.batch.block_table + unit.sequence * args.batch.max_blocks;
  const int64_t key_bytes = key_block_bytes(kBits, cache.key_layout, head_dim);
  const int64_t value_bytes = value_block_bytes(kBits, head_dim);
  const int64_t tile_bytes = kv_tile_bytes(kBits, head_dim);
  const auto locate = [&](int64_t start) {
    CodesBlock block;
    block.start = start;
    for (int64_t half = 0; half < kTilesPerBlock / kTilesPerHalf; ++half) {
      // The half past the end is computed together with the other one and masked: any address will
      // do.
      const int64_t wanted = start + half * kKvBlockTokens;
      const int64_t token = wanted < last ? wanted : start;
      if (token >= own) {
        block.own = half * kTilesPerHalf;
        break;
      }
      const int64_t page = pages[token / cache.page_tokens];
      const int64_t index = token % cache.page_tokens / kKvBlockTokens;
      const uint8_t* k = key_blocks_of(cache, page, unit.kv_head) + index * key_bytes;
      const uint8_t* v = value_blocks_of(cache, page, unit.kv_head) + index * value_bytes;
      const auto* k_scales = reinterpret_cast<const uint16_t*>(k + 2 * tile_bytes);
      const auto* v_scales = reinterpret_cast<const uint16_t*>(v + 2 * tile_bytes);
      if (by_channel) block.channels[half] = k_scales;
      for (int64_t i = 0; i < kTilesPerHalf; ++i) {
        const int64_t tile = half * kTilesPerHalf + i;
        block.k[tile] = k + i * tile_bytes;
        block.v[tile] = v + i * tile_bytes;
        if constexpr (C::kAffine) {
          block.k_scale[tile] = by_channel ? kHalfOnes : k_scales + i * kTileTokens;
          block.k_minimum[tile] =
              by_channel ? kHalfOnes : k_scales + kKvBlockTokens + i * kTileTokens;
          block.v_scale[tile] = v_scales + i * kTileTokens;
          block.v_minimum[tile] = v_scales + kKvBlockTokens + i * kTileTokens;
        } else {
          block.k_scale[tile] = reinterpret_cast<const float*>(k_scales) + i * kTileTokens;
          block.v_scale[tile] = reinterpret_cast<const float*>(v_scales) + i * kTileTokens;
        }
      }
      if (wanted < last) block.tiles = (half + 1) * kTilesPerHalf;
    }
    return block;
  };

  const int64_t block_begin = begin_of_chunks(unit, window) / kBlockTokens * kBlockTokens;
  CodesBlock block = locate(block_begin);
  for (int64_t start = block_begin; start < last; start += kBlockTokens) {
    if (start == block_begin || start % kChunkTokens == 0) {
      if (unit.slot >= 0)
        scratch.chunk = part_of<S>(args, scratch.parts, unit, start / kChunkTokens, rows, dh);
      clear_rows<S>(scratch.chunk, rows, dh);
    }
    CodesBlock next = block;
    if (start + kBlockTokens < last) next = locate(start + kBlockTokens);
    for (int64_t half = 0; by_channel && half * kTilesPerHalf < block.tiles; ++half)
      round_queries<S>(scratch.q, rows, dh, block.channels[half],
                       scratch.queries + half * rows * dh, scratch.factor + half * rows,
                       scratch.offset + half * rows);
    if (rows <= kDirectRows) {
      // Only whole blocks are prefetched: of a last one there is little, and not all tiles are
      // known.
      block.next = next.tiles == kTilesPerBlock && block.tiles == kTilesPerBlock ? &next : nullptr;
      attend_codes<S, C>(block, unit, rows, window, dh, scratch);
    } else if constexpr (C::kAffine) {
      widen<S, kBits>(block, dh, scratch);
      attend_codes<S, Widened>(block, unit, rows, window, dh, scratch);
    } else {
      attend_codes<S, C>(block, unit, rows, window, dh, scratch);
    }
    block = next;
    const int64_t end = start + kBlockTokens;
    if (unit.slot < 0 && (end >= last || end % kChunkTokens == 0))
      add_chunk<S>(scratch.chunk, rows, dh, scratch.total);
  }
  if (unit.slot < 0) write_rows<S>(args, unit, rows, dh, scratch.total);
}

template <typename S>
int64_t codes_scratch_bytes(const AttentionArgs& args) {
  int64_t bytes;
  codes_scratch<S>(args, nullptr, &bytes);
  return bytes;
}

// Head sizes up to kLargestCodedHead.
template <typename S, typename C>
void codes_attention(const AttentionArgs& args, const Worker& worker) {
  int64_t bytes = codes_scratch_bytes<S>(args);
  const CodesScratch scratch = codes_scratch<S>(args, args.scratch + worker.index * bytes, &bytes);
  for_each_unit(args, worker,
                [&](const AttentionUnit& unit) { attend_unit_codes<S, C>(args, unit, scratch); });
}

template <typename S>
void codes_merge(const AttentionArgs& args, const Worker& worker) {
  int64_t bytes = codes_scratch_bytes<S>(args);
  const CodesScratch scratch = codes_scratch<S>(args, args.scratch + worker.index * bytes, &bytes);
  merge_parts<S>(args, worker, padded_head_dim(args.cache.head_dim), bytes, scratch.total);
}

}  // namespace
}  // namespace whit::cpu
