// Codes of packed weights as operands of the tensor cores.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "tensor/e4m3.h"

namespace whit::cuda {

// a & b | c and (a & b) ^ c in one instruction, which nvcc makes two of.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}
__device__ __forceinline__ uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t out;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
}

// A lane's codes of a unit of kW8A8, of rows r and r + 8, words [jj][upper]; own: the shared
// address of its first eight bytes.
__device__ __forceinline__ void load_core_matrices(uint32_t own, uint4 (&half)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint2 first = load_shared_8(own + h * 512);
    const uint2 second = load_shared_8(own + h * 512 + 256);
    half[h] = make_uint4(first.x, first.y, second.x, second.y);
  }
}

// Operand A of the product of words jj of a unit, a lane's [row half][upper][jj]:
// unpack(word, row half) of its rows r and r + 8, then of the same rows' upper columns.
template <typename Unpack>
__device__ __forceinline__ void unpack_operand(uint32_t (&a)[4], const uint4 (&half)[2], int jj,
                                               const Unpack& unpack) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const uint4& words = half[row];
    a[row] = unpack(jj == 0 ? words.x : words.y, row);
    a[2 + row] = unpack(jj == 0 ? words.z : words.w, row);
  }
}

// The low f16 of a scale word, and its zero point in all four bytes.
__device__ __forceinline__ float scale_of(uint32_t word) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffff)));
}
__device__ __forceinline__ uint32_t zero_bytes_of(uint32_t word) {
  return (word >> 16) * 0x01010101u;
}

// Nibble i of each byte, as int8. With zero points: code − zero. Without: 16 · (code − 8), three
// instructions for eight weights instead of seven; the scale is then divided by 16, which changes
// no bit of scale · integer.
template <bool kZeroPoints>
__device__ __forceinline__ uint32_t int8_of_nibbles(uint32_t word, int i, uint32_t zero_bytes) {
  if constexpr (kZeroPoints) {
    // 0x80 keeps each byte's subtraction from borrowing; xor makes it two's complement.
    const uint32_t biased = and_or(i == 0 ? word : word >> 4, 0x0f0f0f0fu, 0x80808080u);
    return (biased - zero_bytes) ^ 0x80808080u;
  } else {
    return and_xor(i == 0 ? word << 4 : word, 0xf0f0f0f0u, 0x80808080u);
  }
}
template <bool kZeroPoints>
constexpr float kInt4Unit = kZeroPoints ? 1.0f : 0.0625f;

// Two-level scales: the multiple of a scale word, and what makes code · multiple that of
// code − zero, plus 128, in every byte at once; then (code − zero) · multiple as int8: four
// products by one multiplication, none of which is above 255.
__device__ __forceinline__ uint32_t multiple_of(uint32_t word) { return word & 0xffff; }
__device__ __forceinline__ uint32_t two_level_offset_of(uint32_t word) {
  return (128 - (word >> 16) * multiple_of(word)) * 0x01010101u;
}
__device__ __forceinline__ uint32_t int8_of_two_level(uint32_t word, int i, uint32_t multiple,
                                                      uint32_t offset) {
  return (((i == 0 ? word : word >> 4) & 0x0f0f0f0fu) * multiple + offset) ^ 0x80808080u;
}

// Of a unit's rows r and r + 8, by the scale words of both.
class TwoLevelCodes {
 public:
  __device__ __forceinline__ explicit TwoLevelCodes(uint2 scale_words)
      : multiples_{multiple_of(scale_words.x), multiple_of(scale_words.y)},
        offsets_{two_level_offset_of(scale_words.x), two_level_offset_of(scale_words.y)} {}
  // Nibble i of each byte of a word of row r, or r + 8 where `row` is 1.
  __device__ __forceinline__ uint32_t of(uint32_t word, int i, int row) const {
    return int8_of_two_level(word, i, multiples_[row], offsets_[row]);
  }

 private:
  uint32_t multiples_[2], offsets_[2];
};

// kW4AFp8: code − zero as e4m3, exact, since integers up to 16 are: a table of sixteen bytes for
// each zero point, which prmt looks codes up in, eight at a time by their low three bits.
struct E4m3Tables {
  uint32_t words[16][4];
};
constexpr E4m3Tables e4m3_tables() {
  E4m3Tables tables{};
  for (int zero = 0; zero < 16; ++zero)
    for (int code = 0; code < 16; ++code)
      tables.words[zero][code / 4] |=
          static_cast<uint32_t>(f32_to_e4m3(static_cast<float>(code - zero))) << (8 * (code % 4));
  return tables;
}
__device__ const E4m3Tables kE4m3Tables = e4m3_tables();

// By the scale word of a row's group.
template <bool kZeroPoints>
class E4m3Codes {
 public:
  __device__ __forceinline__ explicit E4m3Codes(uint32_t scale_word) {
    if constexpr (kZeroPoints) {
      const uint4 row = __ldg(reinterpret_cast<const uint4*>(kE4m3Tables.words[scale_word >> 16]));
      table_[0] = row.x, table_[1] = row.y, table_[2] = row.z, table_[3] = row.w;
    } else {
      constexpr E4m3Tables kTables = e4m3_tables();
#pragma unroll
      for (int i = 0; i < 4; ++i) table_[i] = kTables.words[8][i];
    }
  }
  // Codes 4·i … 4·i + 3 of a word.
  __device__ __forceinline__ uint32_t of(uint32_t word, int i) const {
    const uint32_t selectors = (word & 0x77777777u) >> (16 * i);
    // Where a code is 8 and above, from its bit 3, all bits of its byte: prmt's modes that repeat
    // signs.
    uint32_t above;
    asm("prmt.b32 %0, %1, 0, 0xba98;" : "=r"(above) : "r"(i == 0 ? word : word << 4));
    const uint32_t low = __byte_perm(table_[0], table_[1], selectors);
    const uint32_t high = __byte_perm(table_[2], table_[3], selectors);
    return (low & ~above) | (high & above);
  }

 private:
  uint32_t table_[4];
};

// Bytes 2·i and 2·i + 1 of four e4m3 numbers as two f16 numbers, exact (NaN becomes 480 below
// SM 8.9; its row's scale is NaN too).
template <int i>
__device__ __forceinline__ uint32_t f16_of_e4m3(uint32_t word) {
#if __CUDA_ARCH__ >= 890
  uint32_t out;
  const auto pair = static_cast<unsigned short>(word >> (16 * i));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(pair));
  return out;
#else
  // The same fields mean 2^-8 of it: exponents are biased by 15 instead of 7.
  const uint32_t high = __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);
  const uint32_t fields = (high & 0x80008000u) | ((high & 0x7f007f00u) >> 1);
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(fields), "r"(0x5c005c00u));
  return out;
#endif
}

// Nibble i of each half-word less the zero point, as two bf16 numbers, exact. minus_zero holds
// −(128 + zero point) twice.
__device__ __forceinline__ uint32_t bf16_of_nibbles(uint32_t word, int i, uint32_t minus_zero) {
  const uint32_t biased = and_or(word >> (4 * i), 0x000f000fu, 0x43004300u);  // 128 + code
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(biased), "r"(0x3f803f80u), "r"(minus_zero));
  return out;
}
__device__ __forceinline__ uint32_t minus_zero_of(uint32_t word) {
  return __byte_perm(word, 0, 0x3232) ^ 0x80008000u;
}

// Bytes 2·i and 2·i + 1 of four int8 weights as two bf16 numbers, exact: bf16 has the bits of
// 128 + (weight & 127), from which 128 is taken, or 256 where the weight is negative.
__device__ __forceinline__ uint32_t bf16_of_bytes(uint32_t word, int i) {
  const uint32_t bytes = __byte_perm(word, 0, 0x4140 + 0x0202 * i);
  const uint32_t biased = and_or(bytes, 0x007f007fu, 0x43004300u);
  const uint32_t minus_bias = and_or(bytes, 0x00800080u, 0xc300c300u);
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(biased), "r"(0x3f803f80u), "r"(minus_bias));
  return out;
}

}  // namespace whit::cuda
