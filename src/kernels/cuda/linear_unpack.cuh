// Codes of packed weights as operands of the tensor cores.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

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
