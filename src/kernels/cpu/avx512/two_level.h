// Two-level int4 panels as lines of int8 codes, for AVX-512 and AMX.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

// (code − zero) · multiple of packed lines [begin, end): int8 lines [2 · (end − begin)] at `to`. A
// product code · multiple is at most 225, so that one 16-bit multiplication makes two of them.
inline void unpack_two_level(const TwoLevelPanel& panel, int64_t group_size, int64_t begin,
                             int64_t end, std::byte* to) {
  constexpr int64_t kPrefetchLines = 64;
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t line = begin; line < end;) {
    const int64_t group = 8 * line / group_size;
    // A group other than the last ends with a line; the last one takes its line whole.
    const int64_t group_end = ((group + 1) * group_size + 7) / 8;
    const int64_t stop = end < group_end ? end : group_end;
    __m512i multiple[2], share[2];
    for (int v = 0; v < 2; ++v) {
      const int64_t at = group * kPanelRows + 16 * v;
      const auto widen = [&](const uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
      };
      multiple[v] = _mm512_mullo_epi32(widen(panel.multiples), _mm512_set1_epi32(0x00010001));
      share[v] = _mm512_mullo_epi32(widen(panel.shares), _mm512_set1_epi32(0x01010101));
    }
    for (; line < stop; ++line, to += 2 * kLineBytes)
      for (int v = 0; v < 2; ++v) {
        const std::byte* from = panel.lines + line * kLineBytes + 64 * v;
        _mm_prefetch(reinterpret_cast<const char*>(from + kPrefetchLines * kLineBytes),
                     _MM_HINT_T0);
        const __m512i words = _mm512_loadu_si512(from);
        const __m512i low = _mm512_and_si512(words, mask);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(words, 4), mask);
        _mm512_storeu_si512(to + 64 * v,
                            _mm512_sub_epi8(_mm512_mullo_epi16(low, multiple[v]), share[v]));
        _mm512_storeu_si512(to + kLineBytes + 64 * v,
                            _mm512_sub_epi8(_mm512_mullo_epi16(high, multiple[v]), share[v]));
      }
  }
}

}  // namespace
}  // namespace whit::cpu
