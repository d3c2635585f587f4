// What AVX2's linears of int4_group weights have in common: a group's scales and zero points, and
// what becomes of its sums.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/avx2/words.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

// Scales and zero points of one group for the rows of a panel.
struct Group {
  __m256 scale[kPanelVectors];
  __m256i zero[kPanelVectors];
};

inline void load_group(const std::byte* scales, const uint8_t* zeros, Group& group) {
  repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
    group.scale[v] =
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + 2 * kLanes * v)));
    group.zero[v] =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + kLanes * v)));
  });
}

// sums [MR][32] += scale · (acc − zero · group_sum), kVectors registers of rows from register
// `first` of the panel on.
template <int MR, int kVectors>
inline __attribute__((always_inline)) void add_group(const __m256i (&acc)[MR][kVectors],
                                                     const Group& group, int first,
                                                     const int32_t* group_sums,
                                                     int64_t group_sums_stride, float* sums) {
  repeat<MR>([&](auto m) __attribute__((always_inline)) {
    const __m256i sum = _mm256_set1_epi32(group_sums[m * group_sums_stride]);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      const __m256i dot =
          _mm256_sub_epi32(acc[m][v], _mm256_mullo_epi32(group.zero[first + v], sum));
      float* at = sums + m * kPanelRows + kLanes * (first + v);
      _mm256_storeu_ps(at, _mm256_fmadd_ps(group.scale[first + v], _mm256_cvtepi32_ps(dot),
                                           _mm256_loadu_ps(at)));
    });
  });
}

// sums [rows][32], a row times its activations' scale.
template <typename ScaleOf>
inline void scale_rows(int64_t rows, const ScaleOf& scale_of, float* sums) {
  for (int64_t m = 0; m < rows; ++m) {
    const __m256 x_scale = _mm256_set1_ps(scale_of(m));
    for (int v = 0; v < kPanelVectors; ++v, sums += kLanes)
      _mm256_storeu_ps(sums, _mm256_mul_ps(_mm256_loadu_ps(sums), x_scale));
  }
}

}  // namespace
}  // namespace whit::cpu
