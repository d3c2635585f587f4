// AVX-512 vectors for kernels/cpu/linear_float.h. Bound for many rows: two 16-lane FMAs a clock.
//
// bf16 weights are widened to f32: vdpbf16ps would double the rate for many rows, but it rounds the
// activations to bf16, and results of one engine would differ visibly between machines.
#include "kernels/cpu/linear_float.h"

#include <immintrin.h>

#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

struct Avx512 {
  using Reg = __m512;
  using Words = __m512i;
  static constexpr int kLanes = 16;
  // 8 × 2 sums: 16 independent FMAs and 10 loads a column, where loads and FMAs both go two a
  // clock.
  static constexpr int kTileRows = 8, kTileVectors = 2;
  // 128 columns × 32 rows of f32 are 16 KB: half of the smallest L1.
  static constexpr int64_t kBlockColumns = 128;
  static constexpr int kMostDirectRows = 4;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Reg value) { _mm512_storeu_ps(to, value); }
  static Reg broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg multiply(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg multiply_subtract(Reg a, Reg b, Reg c) { return _mm512_fmsub_ps(a, b, c); }

  static Words load_words(const std::byte* from) { return _mm512_loadu_si512(from); }
  static Reg as_float(Words words) { return _mm512_castsi512_ps(words); }
  static Reg to_float(Words words) { return _mm512_cvtepi32_ps(words); }
  template <int bits>
  static Words shift_left(Words words) {
    return _mm512_slli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_right(Words words) {
    return _mm512_srli_epi32(words, bits);
  }
  template <int bits>
  static Words shift_right_signed(Words words) {
    return _mm512_srai_epi32(words, bits);
  }
  static Words and_bits(Words words, uint32_t bits) {
    return _mm512_and_si512(words, _mm512_set1_epi32(static_cast<int>(bits)));
  }
  static Reg constant(float value) { return _mm512_set1_ps(value); }
  static Reg load_f16(const std::byte* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static Reg load_u8(const uint8_t* from) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  static void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T0); }
};

}  // namespace

constinit const LinearKernel kAvx512LinearFloat[3] = {
    FloatLinear<Avx512, WeightFormat::kF32>::row("avx512/linear_f32", Isa::kAvx512),
    FloatLinear<Avx512, WeightFormat::kBF16>::row("avx512/linear_bf16", Isa::kAvx512),
    FloatLinear<Avx512, WeightFormat::kFp8Channel>::row("avx512/linear_fp8", Isa::kAvx512),
};

}  // namespace whit::cpu
