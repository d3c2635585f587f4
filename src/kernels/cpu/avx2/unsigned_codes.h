// What AVX2's linears of int4 weights and int8 activations have in common.
//
// vpmaddubsw multiplies unsigned codes by signed activations. A result is at most 2 · 15 · 128 =
// 3840 in magnitude, so eight of them, four lines of a panel, are added in int16 before vpmaddwd
// widens their sum to int32.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/avx2/words.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr int kTileRows = 4;
constexpr int64_t kLinesPerSum = 4;  // of int16 sums
constexpr int64_t kMostInlineRows = 4;
constexpr int64_t kHalfLineBytes = 4 * kTileColumns;  // of unpacked codes

inline __m256i broadcast(const int8_t* from) {
  int32_t word;
  std::memcpy(&word, from, 4);
  return _mm256_set1_epi32(word);
}
inline __m256i low_nibbles(__m256i words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i words) { return low_nibbles(_mm256_srli_epi16(words, 4)); }

// sum += products, in int16. As an intrinsic g++ 12 regroups the additions of a whole unrolled
// loop, which keeps every product in memory until the end.
inline void add_int16(__m256i& sum, __m256i products) {
  __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(products));
}

template <int MR, int kVectors>
inline __attribute__((always_inline)) void clear(__m256i (&acc)[MR][kVectors]) {
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = _mm256_setzero_si256();
  });
}

// acc += the int16 sums, widened, times int16 factors: by register of rows, or one for all.
template <int MR, int kVectors, int kFactors>
inline __attribute__((always_inline)) void flush(const __m256i (&sums)[MR][kVectors],
                                                 const __m256i (&factors)[kFactors],
                                                 __m256i (&acc)[MR][kVectors]) {
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    constexpr int m = i / kVectors, v = i % kVectors;
    acc[m][v] = _mm256_add_epi32(acc[m][v], _mm256_madd_epi16(sums[m][v], factors[v % kFactors]));
  });
}

// One line as it lies in the panel: 8 columns of kVectors registers of rows.
template <bool first, int MR, int kVectors>
inline __attribute__((always_inline)) void add_packed_line(const std::byte* line, const int8_t* q,
                                                           int64_t q_stride,
                                                           __m256i (&sums)[MR][kVectors]) {
  if constexpr (kVectors > 1)
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T1);
  if constexpr (kVectors > 2)
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64, _MM_HINT_T1);
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    const __m256i words = load(line + 32 * v);
    const __m256i low = low_nibbles(words), high = high_nibbles(words);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m256i a = _mm256_maddubs_epi16(low, broadcast(q + m * q_stride));
      const __m256i b = _mm256_maddubs_epi16(high, broadcast(q + m * q_stride + 4));
      if constexpr (first)
        sums[m][v] = a;
      else
        add_int16(sums[m][v], a);
      add_int16(sums[m][v], b);
    });
  });
}

// Half a line of unpacked codes [16 rows][4 columns].
template <bool first, int MR>
inline __attribute__((always_inline)) void add_unpacked_half_line(
    const std::byte* codes, const int8_t* q, int64_t q_stride, __m256i (&sums)[MR][kTileVectors]) {
  const __m256i w0 = load(codes), w1 = load(codes + 32);
  repeat<MR>([&](auto m) __attribute__((always_inline)) {
    const __m256i value = broadcast(q + m * q_stride);
    const __m256i a = _mm256_maddubs_epi16(w0, value), b = _mm256_maddubs_epi16(w1, value);
    if constexpr (first) {
      sums[m][0] = a;
      sums[m][1] = b;
    } else {
      add_int16(sums[m][0], a);
      add_int16(sums[m][1], b);
    }
  });
}

// acc += factors · (codes · q) over `lines` lines of a panel.
template <int MR, int kVectors, int kFactors>
inline __attribute__((always_inline)) void add_packed_lines(const std::byte* line, int64_t lines,
                                                            const int8_t* q, int64_t q_stride,
                                                            const __m256i (&factors)[kFactors],
                                                            __m256i (&acc)[MR][kVectors]) {
  __m256i sums[MR][kVectors];
  for (int64_t left = lines; left > 0; left -= kLinesPerSum) {
    add_packed_line<true>(line, q, q_stride, sums);
    line += kLineBytes;
    q += 8;
    const int64_t count = left < kLinesPerSum ? left : kLinesPerSum;
#pragma GCC unroll 1
    for (int64_t i = 1; i < count; ++i, line += kLineBytes, q += 8)
      add_packed_line<false>(line, q, q_stride, sums);
    flush(sums, factors, acc);
  }
}

// The same over unpacked codes.
template <int MR, int kFactors>
inline __attribute__((always_inline)) void add_unpacked_lines(const std::byte* codes, int64_t lines,
                                                              const int8_t* q, int64_t q_stride,
                                                              const __m256i (&factors)[kFactors],
                                                              __m256i (&acc)[MR][kTileVectors]) {
  __m256i sums[MR][kTileVectors];
  for (int64_t left = lines; left > 0; left -= kLinesPerSum) {
    add_unpacked_half_line<true>(codes, q, q_stride, sums);
    codes += kHalfLineBytes;
    q += 4;
    const int64_t count = left < kLinesPerSum ? left : kLinesPerSum;
#pragma GCC unroll 1
    for (int64_t i = 1; i < 2 * count; ++i, codes += kHalfLineBytes, q += 4)
      add_unpacked_half_line<false>(codes, q, q_stride, sums);
    flush(sums, factors, acc);
  }
}

// Lines → codes [2 halves of the panel][2 · lines][16 rows][4 columns].
inline void unpack_lines(const std::byte* lines, int64_t count, std::byte* codes) {
  const int64_t half = count * 8 * kTileColumns;
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, codes += 8 * kTileColumns)
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 32 * v, _MM_HINT_T1);
      const __m256i words = load(lines + 32 * v);
      std::byte* to = codes + v / kTileVectors * half + v % kTileVectors * 32;
      store(to, low_nibbles(words));
      store(to + 4 * kTileColumns, high_nibbles(words));
    });
}

// Rows of activations per block: they should stay in L2 while all panels pass by.
inline int64_t block_rows(int64_t k, int64_t m) {
  constexpr int64_t kBlockBytes = 256 << 10, kLeastBlockRows = 48, kMostBlockRows = 384;
  int64_t rows = kBlockBytes / k;
  rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
  rows -= rows % kTileRows;
  return rows < m ? rows : m;
}

}  // namespace
}  // namespace whit::cpu
