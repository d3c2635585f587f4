// AVX2 vectors for kernels/cpu/linear_float.h, of floating-point weights. Bound for many rows: two
// 8-lane FMAs a clock.
#include "kernels/cpu/linear_float.h"

#include <immintrin.h>

#include <utility>

#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

struct Avx2 {
  using Reg = __m256;     // kLanes f32
  using Words = __m256i;  // kLanes words of 32 bits
  static constexpr int kLanes = 8;
  // 6 × 2 sums, 2 weights and a broadcast value: 15 of 16 registers, and 12 independent FMAs where
  // a latency of 4 at two a clock needs 8.
  static constexpr int kTileRows = 6, kTileVectors = 2;
  // 256 columns × 16 rows of f32 are 16 KB, half of L1; a longer block saves loads and stores of
  // partial sums.
  static constexpr int64_t kBlockColumns = 256;
  // 2 × 4 sums leave registers for the widening.
  static constexpr int kMostDirectRows = 2;

  static Reg zero() { return _mm256_setzero_ps(); }
  static Reg load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Reg value) { _mm256_storeu_ps(to, value); }
  static Reg broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg multiply_subtract(Reg a, Reg b, Reg c) { return _mm256_fmsub_ps(a, b, c); }

  static Words load_words(const std::byte* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static Reg as_float(Words words) { return _mm256_castsi256_ps(words); }
  static Reg to_float(Words words) { return _mm256_cvtepi32_ps(words); }
  template <int bits>
  static Words shift_left(Words words) {
    return _mm256_slli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_right(Words words) {
    return _mm256_srli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_right_signed(Words words) {
    return _mm256_srai_epi32(words, bits);
  }
  static Words and_bits(Words words, uint32_t bits) {
    return _mm256_and_si256(words, _mm256_set1_epi32(static_cast<int>(bits)));
  }
  static Reg constant(float value) { return _mm256_set1_ps(value); }
  static Reg load_f16(const std::byte* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static Reg load_u8(const uint8_t* from) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
};

}  // namespace

constinit const LinearKernel kAvx2LinearFloat[3] = {
    FloatLinear<Avx2, WeightFormat::kF32>::row("avx2/linear_f32", Isa::kAvx2),
    FloatLinear<Avx2, WeightFormat::kBF16>::row("avx2/linear_bf16", Isa::kAvx2),
    FloatLinear<Avx2, WeightFormat::kFp8Channel>::row("avx2/linear_fp8", Isa::kAvx2),
};

}  // namespace whit::cpu
