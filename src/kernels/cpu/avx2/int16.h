// What AVX2's linears have in common that multiply int16 by int16: vpmaddwd, two products summed in
// int32, exact, 64 operations a clock and core where an f32 FMA makes 32.
//
// A word holds two columns. Of four columns the words are (0, 2) and (1, 3): so bytes widen with
// one operation a word, and so activations are laid out too.
//
// f32 activations become int16 for it: q = rne(x / scale), scale = absmax of the row / kLargest, so
// that a value is off by at most 2^-15 of its row's largest; half of the sums' bits are left to the
// weights. A row with NaN or infinity gives NaN.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstring>

#include "kernels/cpu/avx2/words.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr int kPairTileRows = 6;

// |Σ code · q| ≤ 1024 · 128 · 16383 < 2³¹.
constexpr float kLargestInt16 = 16383;
constexpr int64_t kInt16Columns = 1024;

inline __m256i broadcast(const int32_t* from) { return _mm256_set1_epi32(*from); }
// As an intrinsic g++ 12 makes all products of a tile before it adds them, for which it has too few
// registers.
inline __attribute__((always_inline)) void add_products(__m256i& sum, __m256i a, __m256i b) {
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16(a, b)));
}
// Columns 0 and 2, and 1 and 3, of each word of four bytes as int16.
inline __m256i widen_even(__m256i words) {
  return _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
}
inline __m256i widen_odd(__m256i words) { return _mm256_srai_epi16(words, 8); }

// Words of a row of K activations; zeros fill up the last 32 columns.
inline int64_t pair_words(int64_t k) { return (k + 31) / 32 * 16; }

inline void widen_row(const int8_t* q, int64_t k, int32_t* to) {
  for (int64_t i = 0; i < k; i += 32, to += 16) {
    const __m256i words = load(q + i);
    const __m256i even = widen_even(words), odd = widen_odd(words);
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    store(to, _mm256_permute2x128_si256(low, high, 0x20));
    store(to + 8, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

// 16 columns of x as 8 words.
inline __m256i quantize_16(const float* x, __m256 inverse) {
  const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
  const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), inverse));
  const __m256i codes = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  return _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)));
}

// x [K] as words; returns the scale.
inline float quantize_row(const float* x, int64_t k, int32_t* to) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256i most = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes)
    most = _mm256_max_epi32(most, _mm256_and_si256(load(x + i), magnitude));
  int32_t lanes[kLanes], largest = 0;  // as bits, among which NaN is the largest
  store(lanes, most);
  for (const int32_t lane : lanes) largest = lane > largest ? lane : largest;
  for (; i < k; ++i) {
    const int32_t bits = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  float scale = std::bit_cast<float>(largest) / kLargestInt16;
  if (!(scale < __builtin_inff())) scale = __builtin_nanf("");
  // Below that its inverse is infinite; such a row counts as zeros.
  const bool tiny = scale < 0x1p-120f;
  if (tiny) scale = 0;
  const __m256 inverse = _mm256_set1_ps(tiny ? 0 : 1 / scale);
  for (i = 0; i + 32 <= k; i += 32, to += 16) {
    store(to, quantize_16(x + i, inverse));
    store(to + 8, quantize_16(x + i + 16, inverse));
  }
  if (i < k) {
    float last[32] = {};
    std::memcpy(last, x + i, 4 * (k - i));
    store(to, quantize_16(last, inverse));
    store(to + 8, quantize_16(last + 16, inverse));
  }
  return scale;
}

// acc [MR][16] += x · block over `pairs` words; block [pairs][16].
template <int MR>
inline __attribute__((always_inline)) void add_pairs(const int32_t* block, int64_t pairs,
                                                     const int32_t* x, int64_t x_stride,
                                                     __m256i (&acc)[MR][kTileVectors]) {
  for (int64_t i = 0; i < pairs; ++i, block += kTileColumns) {
    const __m256i w0 = load(block), w1 = load(block + kLanes);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m256i value = broadcast(x + m * x_stride + i);
      add_products(acc[m][0], w0, value);
      add_products(acc[m][1], w1, value);
    });
  }
}

// Rows of activations per block: as words they should stay in L2 while all panels pass by.
inline int64_t pair_block_rows(int64_t k, int64_t m) {
  constexpr int64_t kBlockBytes = 256 << 10, kLeast = 48, kMost = 192;
  int64_t rows = kBlockBytes / (2 * k);
  rows = rows < kLeast ? kLeast : rows > kMost ? kMost : rows;
  rows -= rows % kPairTileRows;
  return rows < m ? rows : m;
}

}  // namespace
}  // namespace whit::cpu
