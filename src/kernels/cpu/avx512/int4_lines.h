// Products of int4 codes and int8 activations in AVX-512's linears: sums of code · q, codes without
// their zero points.
//
// vpdpbusd multiplies the unsigned codes by the signed activations and sums four products into
// int32 without saturation.
#pragma once

#include <cstring>

#include "kernels/cpu/avx512/words.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr int64_t kMostInlineRows = 16;                 // for more, codes are unpacked to memory
constexpr int64_t kUnpackedLineBytes = 2 * kLineBytes;  // columns 0–3 of 32 rows, then 4–7

enum class Int4Lines { kPacked, kUnpacked };

inline __m512i broadcast(const int8_t* from) {
  int32_t word;
  std::memcpy(&word, from, 4);
  return _mm512_set1_epi32(word);
}
inline __m512i low_nibbles(__m512i words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
inline __m512i high_nibbles(__m512i words) { return low_nibbles(_mm512_srli_epi16(words, 4)); }

// f(m, v, Σ code · q) for MR rows m of activations and the panel's registers v, over `lines` lines.
template <int MR, Int4Lines codes, typename F>
inline __attribute__((always_inline)) void multiply_int4_lines(const std::byte* line, int64_t lines,
                                                               const int8_t* q, int64_t q_stride,
                                                               const F& f) {
  // With few rows the two halves of a line get accumulators of their own: a chain's latency is 4 or
  // 5 clocks.
  constexpr int kChains = MR <= 2 ? 2 : 1;
  __m512i acc[kChains][MR][kVectors];
  repeat<kChains * MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / (MR * kVectors)][i / kVectors % MR][i % kVectors] = _mm512_setzero_si512();
  });
  for (int64_t i = 0; i < lines; ++i, q += 8) {
    __m512i low[kVectors], high[kVectors];
    if constexpr (codes == Int4Lines::kPacked) {
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
        const __m512i words = load(line + 64 * v);
        low[v] = low_nibbles(words);
        high[v] = high_nibbles(words);
      });
      line += kLineBytes;
    } else {
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        low[v] = load(line + 64 * v);
        high[v] = load(line + kLineBytes + 64 * v);
      });
      line += kUnpackedLineBytes;
    }
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m512i value = broadcast(q + m * q_stride);
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        add_products(acc[0][m][v], low[v], value);
      });
    });
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m512i value = broadcast(q + m * q_stride + 4);
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        add_products(acc[kChains - 1][m][v], high[v], value);
      });
    });
  }
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i / kVectors, v = i % kVectors;
    if constexpr (kChains == 2)
      f(m, v, _mm512_add_epi32(acc[0][m][v], acc[1][m][v]));
    else
      f(m, v, acc[0][m][v]);
  });
}

}  // namespace
}  // namespace whit::cpu
