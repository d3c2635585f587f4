// Floating-point activations for kernels that multiply int8: a row is two rows of codes,
//   x ≈ scale · (128 · high + low), scale = absmax of the row / 16319
// with 128 · high + low rounded to nearest. A value is off by at most 2^-15 of its row's largest
// magnitude, and the products cost what bf16 ones would, at 64 times their precision. A row with
// NaN or infinity gives NaN.
//
// A pair's sums become one float in the same way everywhere: fma(128, high, low) · scale.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

// low is in [-64, 63], so that high is at most 127.
constexpr float kLargestPair = 127 * 128 + 63;

// From row to row of K codes: room for whole vectors and tiles, and no multiple of 1024, at which
// rows would share the same few sets of L2.
inline int64_t pair_stride(int64_t k) {
  const int64_t whole = (k + 63) / 64 * 64;
  return whole % 1024 == 0 ? whole + 64 : whole;
}

// One row of a pair: codes, and their sums by group, or null.
struct PairRow {
  int8_t* codes;
  int32_t* group_sums;
};

// Both rows of x [K], zeros behind; returns the scale.
inline float quantize_pair(const float* x, int64_t k, int64_t group_size, const PairRow& high,
                           const PairRow& low) {
  const auto tail = [&](int64_t i, int64_t end) {
    return static_cast<__mmask16>(end - i >= 16 ? 0xffff : (1 << (end - i)) - 1);
  };
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most = _mm512_setzero_si512();  // as bits, among which NaN is the largest
  for (int64_t i = 0; i < k; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(tail(i, k), x + i);
    most = _mm512_max_epi32(most, _mm512_and_si512(_mm512_castps_si512(v), magnitude));
  }
  const int32_t bits = _mm512_reduce_max_epi32(most);
  float largest;
  std::memcpy(&largest, &bits, sizeof largest);
  float scale = largest / kLargestPair;
  if (!(scale < __builtin_inff())) scale = __builtin_nanf("");
  // Below that its inverse is infinite; such a row counts as zeros.
  const bool tiny = scale < 0x1p-120f;
  if (tiny) scale = 0;
  const __m512 inverse = _mm512_set1_ps(tiny ? 0 : 1 / scale);
  const __m512i half = _mm512_set1_epi32(64);
  const int64_t end = pair_stride(k);
  std::memset(high.codes + k, 0, end - k);
  std::memset(low.codes + k, 0, end - k);
  int64_t group = 0;
  for (int64_t begin = 0; begin < k; begin += group_size, ++group) {
    const int64_t stop = begin + group_size < k ? begin + group_size : k;
    __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
    for (int64_t i = begin; i < stop; i += 16) {
      const __mmask16 lanes = tail(i, stop);
      const __m512i code =
          _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, x + i), inverse));
      const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(code, half), 7);
      const __m512i lower = _mm512_sub_epi32(code, _mm512_slli_epi32(upper, 7));
      _mm512_mask_cvtepi32_storeu_epi8(high.codes + i, lanes, upper);
      _mm512_mask_cvtepi32_storeu_epi8(low.codes + i, lanes, lower);
      high_sum = _mm512_add_epi32(high_sum, upper);
      low_sum = _mm512_add_epi32(low_sum, lower);
    }
    if (high.group_sums == nullptr) continue;
    high.group_sums[group] = _mm512_reduce_add_epi32(high_sum);
    low.group_sums[group] = _mm512_reduce_add_epi32(low_sum);
  }
  return scale;
}

inline __m512 pair_sum(__m512 high, __m512 low, float scale) {
  return _mm512_mul_ps(_mm512_fmadd_ps(high, _mm512_set1_ps(128), low), _mm512_set1_ps(scale));
}

// The same of weights with a scale a row.
inline __m512 scaled_pair_sum(__m512 high, __m512 low, __m512 scale, float x_scale) {
  return _mm512_mul_ps(_mm512_fmadd_ps(high, _mm512_set1_ps(128), low),
                       _mm512_mul_ps(scale, _mm512_set1_ps(x_scale)));
}

}  // namespace
}  // namespace whit::cpu
