// Squares of eight rows × eight words are transposed in registers.
#include "kernels/cpu/avx2/pack_lines.h"

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/avx2/words.h"

namespace whit::cpu::avx2 {
namespace {

constexpr int kWords = 8;
// 64 lines of the destination are 8 KB, which stay in L1 while 32 rows are scattered into them.
constexpr int64_t kChunkLines = 64;

// The perfect shuffle of a word's eight nibbles: the middle bytes change places, then the middle
// nibbles of each half.
inline __m256i shuffle_nibbles(__m256i words) {
  words = _mm256_shuffle_epi8(
      words, _mm256_set_epi8(15, 13, 14, 12, 11, 9, 10, 8, 7, 5, 6, 4, 3, 1, 2, 0,  //
                             15, 13, 14, 12, 11, 9, 10, 8, 7, 5, 6, 4, 3, 1, 2, 0));
  const __m256i up = _mm256_and_si256(_mm256_srli_epi16(words, 4), _mm256_set1_epi16(0x00f0));
  const __m256i down = _mm256_and_si256(_mm256_slli_epi16(words, 4), _mm256_set1_epi16(0x0f00));
  const __m256i kept = _mm256_and_si256(words, _mm256_set1_epi16(static_cast<short>(0xf00f)));
  return _mm256_or_si256(kept, _mm256_or_si256(up, down));
}

inline __m256i load_words(const uint8_t* row, int64_t at, int64_t end) {
  if (row == nullptr || at >= end) return _mm256_setzero_si256();
  if (at + 4 * kWords <= end) return load(row + at);
  alignas(32) uint8_t bytes[4 * kWords] = {};
  std::memcpy(bytes, row + at, end - at);
  return load(bytes);
}

// w[i] word j → w[j] word i.
inline void transpose(__m256i (&w)[kWords]) {
  __m256i pairs[kWords], quads[kWords];
  for (int i = 0; i < kWords; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(w[i], w[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(w[i], w[i + 1]);
  }
  for (int i = 0; i < kWords; i += 4)
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      quads[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
  for (int j = 0; j < kWords / 2; ++j) {
    w[j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x20);
    w[4 + j] = _mm256_permute2x128_si256(quads[j], quads[4 + j], 0x31);
  }
}

}  // namespace

template <bool kNibbles>
void pack_lines(const uint8_t* const* rows, int64_t offset, int64_t row_end, int64_t lines,
                std::byte* to) {
  for (int64_t chunk = 0; chunk < lines; chunk += kChunkLines) {
    const int64_t chunk_end = lines < chunk + kChunkLines ? lines : chunk + kChunkLines;
    for (int64_t r = 0; r < kPanelRows; r += kWords)
      for (int64_t line = chunk; line < chunk_end; line += kWords) {
        __m256i w[kWords];
        for (int i = 0; i < kWords; ++i) {
          w[i] = load_words(rows[r + i], offset + 4 * line, row_end);
          if constexpr (kNibbles) w[i] = shuffle_nibbles(w[i]);
        }
        transpose(w);
        const int64_t left = chunk_end - line;
        for (int64_t i = 0; i < (left < kWords ? left : kWords); ++i)
          store(to + (line + i) * kLineBytes + 4 * r, w[i]);
      }
  }
}

template void pack_lines<false>(const uint8_t* const*, int64_t, int64_t, int64_t, std::byte*);
template void pack_lines<true>(const uint8_t* const*, int64_t, int64_t, int64_t, std::byte*);

}  // namespace whit::cpu::avx2
