// Eight f32 lanes for small_ops_vector.h and small_ops_flash.h. For this folder's sources only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace whit::cpu {
namespace {

struct Avx2 {
  using V = __m256;
  using I = __m256i;
  static constexpr int64_t kLanes = 8;
  static constexpr int kCodeVectors = 4;  // per store_codes: 32 bytes
  static constexpr int kRegisters = 16;

  static V load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, V v) { _mm256_storeu_ps(p, v); }
  // The first n lanes of memory, `fill` in the others.
  static V load_partial(const float* p, int64_t n, float fill) {
    const I mask = partial_mask(n);
    return _mm256_blendv_ps(set1(fill), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
  }
  static void store_partial(float* p, V v, int64_t n) {
    _mm256_maskstore_ps(p, partial_mask(n), v);
  }
  // Cache and table elements.
  static V load_element(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void store_element(uint16_t* p, V v) {
    // The bound comes first, so that NaN stays NaN.
    v = min(set1(65504.0f), max(set1(-65504.0f), v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }

  // v, computed no earlier than here.
  static V pinned(V v) {
    __asm__ volatile("" : "+x"(v));
    return v;
  }
  static I pinned(I v) {
    __asm__ volatile("" : "+x"(v));
    return v;
  }
  static V zero() { return _mm256_setzero_ps(); }
  static V set1(float x) { return _mm256_set1_ps(x); }
  static V broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static V add(V a, V b) { return _mm256_add_ps(a, b); }
  static V sub(V a, V b) { return _mm256_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm256_mul_ps(a, b); }
  static V div(V a, V b) { return _mm256_div_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
  // b where either is NaN.
  static V max(V a, V b) { return _mm256_max_ps(a, b); }
  static V min(V a, V b) { return _mm256_min_ps(a, b); }
  // v · 2^n; exact for results that are normal, and 0 for 1 · 2^−127.
  static V scale(V v, I n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(n, 23)));
  }
  // v, but 0 where x < bound.
  static V zero_below(V v, V x, float bound) {
    return _mm256_and_ps(v, _mm256_cmp_ps(x, set1(bound), _CMP_NLT_UQ));
  }
  static V zero_where_zero(V v, V p) {
    return _mm256_and_ps(v, _mm256_cmp_ps(p, zero(), _CMP_NEQ_UQ));
  }
  static uint32_t equal_mask(V a, V b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)));
  }
  // v in lanes whose index + base lies in [begin, end), −inf elsewhere.
  static V within(V v, int64_t base, int64_t begin, int64_t end) {
    const I index = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                     _mm256_set1_epi32(static_cast<int>(base)));
    const I after = _mm256_cmpgt_epi32(index, _mm256_set1_epi32(static_cast<int>(begin) - 1));
    const I before = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(end)), index);
    return _mm256_blendv_ps(set1(-__builtin_inff()), v,
                            _mm256_castsi256_ps(_mm256_and_si256(after, before)));
  }
  static float reduce_add(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
  }
  static float reduce_max(V v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
  }
  // Lane r: all lanes of row r, each row in one order. `rows` are at most 8; other lanes are any.
  template <int R, typename Combine>
  static V combine_rows(const V (&rows)[R], const Combine& combine) {
    const auto row = [&](int r) { return rows[r < R ? r : R - 1]; };
    const auto two = [&](int r) {  // [2 parts][r, r + 1, the same]
      const V a = row(r), b = row(r + 1);
      return combine(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    };
    const auto four = [&](int r) {  // [2 parts][r … r + 3]
      const __m256d a = _mm256_castps_pd(two(r)), b = _mm256_castps_pd(two(r + 2));
      return combine(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)),
                     _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    };
    const V a = four(0), b = R > 4 ? four(4) : a;
    return combine(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  // The first n lanes of a, the others of b.
  template <int n>
  static V first_lanes(V a, V b) {
    return _mm256_blend_ps(b, a, (1 << n) - 1);
  }

  static I zero_int() { return _mm256_setzero_si256(); }
  static I to_int(V v) { return _mm256_cvtps_epi32(v); }  // to nearest, ties to even
  static I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
  static int32_t reduce_add_int(I v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
  // max(a, bits of |v|) as integers: NaN orders above infinity.
  static I max_magnitude(I a, V v) {
    const I bits = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff));
    return _mm256_max_epi32(a, bits);
  }
  static float reduce_max_magnitude(I v) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(s));
  }
  // 32 codes from 4 vectors whose values fit int8.
  static void store_codes(int8_t* p, const I* v) {
    const I words =
        _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<I*>(p), _mm256_permutevar8x32_epi32(words, order));
  }

  static void store_int(int32_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<I*>(p), v); }

  // Pairs of int16 (ops/kv_layout.h): a unit of 32 is two vectors.
  static constexpr int kUnitVectors = 2;
  static constexpr int kWordVectors = 2;  // per store_words: 16 words
  // Both instructions by hand: g++ 12 hoists products of later steps and spills them.
  static I madd(I acc, I a, I b) {
    I product;
    __asm__(
        "vpmaddwd %2, %3, %1\n\t"
        "vpaddd %1, %0, %0"
        : "+x"(acc), "=&x"(product)
        : "x"(a), "x"(b));
    return acc;
  }
  static I broadcast_pair(const int16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm256_set1_epi32(pair);
  }
  static V to_float(I v) { return _mm256_cvtepi32_ps(v); }
  // Vector `part` of unit `unit` of a group of four units of codes of kBits, as int16.
  template <int kBits>
  static I codes(const uint8_t* group, int unit, int part) {
    if constexpr (kBits == 16)
      return _mm256_loadu_si256(reinterpret_cast<const I*>(group + unit * 64 + part * 32));
    if constexpr (kBits == 8)
      return _mm256_cvtepu8_epi16(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(group + unit * 32 + part * 16)));
    const I words = _mm256_loadu_si256(reinterpret_cast<const I*>(group + part * 32));
    return _mm256_and_si256(_mm256_srli_epi16(words, 4 * unit), _mm256_set1_epi16(15));
  }
  // Saturates.
  static void store_words(int16_t* p, const I* v) {
    _mm256_storeu_si256(reinterpret_cast<I*>(p),
                        _mm256_permute4x64_epi64(_mm256_packs_epi32(v[0], v[1]), 0xd8));
  }
  static void store_words_raw(int16_t* p, I v) { _mm256_storeu_si256(reinterpret_cast<I*>(p), v); }

 private:
  static I partial_mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
}  // namespace whit::cpu
