// Sixteen f32 lanes for small_ops_vector.h and small_ops_flash.h. For this folder's sources only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace whit::cpu {
namespace {

struct Avx512 {
  using V = __m512;
  using I = __m512i;
  static constexpr int64_t kLanes = 16;
  static constexpr int kCodeVectors = 1;  // per store_codes: 16 bytes
  static constexpr int kRegisters = 32;

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, V v) { _mm512_storeu_ps(p, v); }
  // The first n lanes of memory, `fill` in the others.
  static V load_partial(const float* p, int64_t n, float fill) {
    return _mm512_mask_loadu_ps(set1(fill), partial_mask(n), p);
  }
  static void store_partial(float* p, V v, int64_t n) {
    _mm512_mask_storeu_ps(p, partial_mask(n), v);
  }
  // Cache and table elements.
  static V load_element(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store_element(uint16_t* p, V v) {
    // The bound comes first, so that NaN stays NaN.
    v = min(set1(65504.0f), max(set1(-65504.0f), v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // v, computed no earlier than here.
  static V pinned(V v) {
    __asm__ volatile("" : "+v"(v));
    return v;
  }
  static I pinned(I v) {
    __asm__ volatile("" : "+v"(v));
    return v;
  }
  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  static V broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  // b where either is NaN.
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  // v · 2^n; exact for results that are normal, and 0 for 1 · 2^−127. (vscalefps would
  // round 2^−127 to a subnormal number instead.)
  static V scale(V v, I n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(n, 23)));
  }
  // v, but 0 where x < bound.
  static V zero_below(V v, V x, float bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(bound), _CMP_NLT_UQ), v);
  }
  static V zero_where_zero(V v, V p) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(p, zero(), _CMP_NEQ_UQ), v);
  }
  static uint32_t equal_mask(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
  // v in lanes whose index + base lies in [begin, end), −inf elsewhere.
  static V within(V v, int64_t base, int64_t begin, int64_t end) {
    const I index =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(static_cast<int>(base)));
    const __mmask16 lanes = _mm512_mask_cmplt_epi32_mask(
        _mm512_cmpge_epi32_mask(index, _mm512_set1_epi32(static_cast<int>(begin))), index,
        _mm512_set1_epi32(static_cast<int>(end)));
    return _mm512_mask_mov_ps(set1(-__builtin_inff()), lanes, v);
  }
  static float reduce_add(V v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float reduce_max(V v) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lane r: all lanes of row r, each row in one order. `rows` are at most 8; other lanes are any.
  template <int R, typename Combine>
  static V combine_rows(const V (&rows)[R], const Combine& combine) {
    const auto row = [&](int r) { return rows[r < R ? r : R - 1]; };
    const auto two = [&](int r) {  // [4 parts][r, r + 1, the same]
      const V a = row(r), b = row(r + 1);
      return combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const auto four = [&](int r) {  // [4 parts][r … r + 3]
      const __m512d a = _mm512_castps_pd(two(r)), b = _mm512_castps_pd(two(r + 2));
      return combine(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                     _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    };
    const V a = four(0), b = R > 4 ? four(4) : a;
    const V half = combine(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    return combine(_mm512_shuffle_f32x4(half, half, 0x88), _mm512_shuffle_f32x4(half, half, 0xdd));
  }
  // The first n lanes of a, the others of b.
  template <int n>
  static V first_lanes(V a, V b) {
    return _mm512_mask_mov_ps(b, (1u << n) - 1, a);
  }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I to_int(V v) { return _mm512_cvtps_epi32(v); }  // to nearest, ties to even
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static int32_t reduce_add_int(I v) { return _mm512_reduce_add_epi32(v); }
  // max(a, bits of |v|) as integers: NaN orders above infinity.
  static I max_magnitude(I a, V v) {
    const I bits = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
    return _mm512_max_epi32(a, bits);
  }
  static float reduce_max_magnitude(I v) {
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(v))));
  }
  // 16 codes from a vector whose values fit int8.
  static void store_codes(int8_t* p, const I* v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v[0]));
  }

  static void store_int(int32_t* p, I v) { _mm512_storeu_si512(p, v); }

  // Pairs of int16 (ops/kv_layout.h): a unit of 32 is one vector.
  static constexpr int kUnitVectors = 1;
  static constexpr int kWordVectors = 1;  // per store_words: 16 words
  // The instruction by hand: g++ 12 copies arrays of accumulators around its intrinsic.
  static I madd(I acc, I a, I b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
  }
  static I broadcast_pair(const int16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static V to_float(I v) { return _mm512_cvtepi32_ps(v); }
  // Unit `unit` of a group of four units of codes of kBits, as int16.
  template <int kBits>
  static I codes(const uint8_t* group, int unit, int) {
    if constexpr (kBits == 16) return _mm512_loadu_si512(group + unit * 64);
    if constexpr (kBits == 8)
      return _mm512_cvtepu8_epi16(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + unit * 32)));
    return _mm512_and_si512(
        _mm512_srli_epi16(_mm512_loadu_si512(group), static_cast<unsigned>(4 * unit)),
        _mm512_set1_epi16(15));
  }
  // Saturates.
  static void store_words(int16_t* p, const I* v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(v[0]));
  }
  static void store_words_raw(int16_t* p, I v) { _mm512_storeu_si512(p, v); }

 private:
  static __mmask16 partial_mask(int64_t n) {
    return static_cast<__mmask16>((1u << static_cast<unsigned>(n)) - 1);
  }
};

}  // namespace
}  // namespace whit::cpu
