// FP8 numbers of 4 exponent and 3 fraction bits (Micikevicius et al., 2022, table 1; "e4m3fn" of
// other tools): sign, exponent of bias 7, fraction. No infinities; largest 448, least 2^-9; 0x7f
// and 0xff are NaN.
#pragma once

#include <bit>
#include <cstdint>

namespace whit {

inline constexpr float kE4m3Largest = 448.0f;

constexpr bool e4m3_is_nan(uint8_t bits) { return (bits & 0x7f) == 0x7f; }

constexpr float e4m3_to_f32(uint8_t bits) {
  if (e4m3_is_nan(bits)) return std::bit_cast<float>(uint32_t{0x7fc00000});
  // As an f32 of the same exponent field it is 2^120 times too small, subnormal ones included.
  const uint32_t magnitude = (bits & 0x7fu) << 20, sign = (bits & 0x80u) << 24;
  return std::bit_cast<float>(sign | magnitude) * 0x1p120f;
}

// The nearest e4m3 number, ties to even; above 448 it is 448. NaN stays NaN.
constexpr float round_to_e4m3(float x) {
  const uint32_t sign = std::bit_cast<uint32_t>(x) & 0x80000000u;
  const float magnitude = std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7fffffffu);
  // From 2^-6 on three bits follow the leading one; below, numbers are multiples of 2^-9.
  const uint32_t bits = std::bit_cast<uint32_t>(magnitude);
  const float normal = std::bit_cast<float>((bits + 0x7ffffu + ((bits >> 20) & 1)) & ~0xfffffu);
  const float subnormal = (magnitude + 0x1p14f) - 0x1p14f;
  float nearest = magnitude < 0x1p-6f ? subnormal : normal;
  nearest = magnitude >= kE4m3Largest ? kE4m3Largest : nearest;
  nearest = magnitude != magnitude ? magnitude : nearest;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(nearest) | sign);
}

constexpr uint8_t f32_to_e4m3(float x) {
  const float nearest = round_to_e4m3(x);
  const uint32_t bits = std::bit_cast<uint32_t>(nearest);
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (nearest != nearest) return sign | 0x7f;
  return sign | static_cast<uint8_t>(std::bit_cast<uint32_t>(nearest * 0x1p-120f) >> 20 & 0x7f);
}

}  // namespace whit
