#include "tensor/dtype.h"

namespace whit {

std::string_view name(DType dtype) {
  constexpr std::string_view kNames[] = {"f32", "f16", "bf16", "i8", "u8", "i32", "i64"};
  return kNames[static_cast<int>(dtype)];
}

int64_t size_of(DType dtype) {
  constexpr int64_t kSizes[] = {4, 2, 2, 1, 1, 4, 8};
  return kSizes[static_cast<int>(dtype)];
}

float f16_to_f32(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // rounds to 65536 or more
  if (magnitude <
      0x38800000u) {  // subnormal: 0.5 has the ulp that binary16's subnormals have << 24
    const float shifted = std::bit_cast<float>(magnitude) * 0x1p24f;
    const auto whole = static_cast<uint32_t>(shifted);
    const float rest = shifted - static_cast<float>(whole);
    return static_cast<uint16_t>(sign |
                                 (whole + (rest > 0.5f || (rest == 0.5f && (whole & 1)) ? 1 : 0)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace whit
