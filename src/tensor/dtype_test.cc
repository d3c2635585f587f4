#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace whit {
namespace {

// The formats' definitions: sign, exponent (bias, all ones: infinity and NaN), mantissa.
double decode(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double sign = bits >> 15 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

struct Format {
  int exponent_bits, mantissa_bits;
  float (*to_f32)(uint16_t);
  uint16_t (*from_f32)(float);
};
constexpr Format kFormats[] = {{5, 10, f16_to_f32, f32_to_f16}, {8, 7, bf16_to_f32, f32_to_bf16}};

TEST(DTypeTest, every_16_bit_pattern_decodes_by_definition_and_survives_a_round_trip) {
  for (const Format& format : kFormats)
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const auto pattern = static_cast<uint16_t>(bits);
      const float value = format.to_f32(pattern);
      const double want = decode(pattern, format.exponent_bits, format.mantissa_bits);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(value)) << bits;
        ASSERT_TRUE(std::isnan(format.to_f32(format.from_f32(value)))) << bits;
      } else {
        ASSERT_EQ(value, want) << bits;
        ASSERT_EQ(std::signbit(value), std::signbit(want)) << bits;
        ASSERT_EQ(format.from_f32(value), pattern) << bits;
      }
    }
}

TEST(DTypeTest, rounding_is_to_nearest_with_ties_to_even) {
  for (const Format& format : kFormats) {
    const int infinity = ((1 << format.exponent_bits) - 1) << format.mantissa_bits;
    // Below, at and above the middle of every two neighbours, the last of which is infinity. The
    // middle below infinity is that of the largest number and the power of two after it.
    for (int bits = 0; bits < infinity; ++bits) {
      const double low =
          decode(static_cast<uint16_t>(bits), format.exponent_bits, format.mantissa_bits);
      const double high = bits + 1 < infinity ? decode(static_cast<uint16_t>(bits + 1),
                                                       format.exponent_bits, format.mantissa_bits)
                                              : std::ldexp(1.0, 1 << (format.exponent_bits - 1));
      const auto middle = static_cast<float>((low + high) / 2);
      ASSERT_EQ(middle, (low + high) / 2) << "the middle is an f32";
      const auto even = static_cast<uint16_t>(bits % 2 == 0 ? bits : bits + 1);
      ASSERT_EQ(format.from_f32(middle), even) << bits;
      ASSERT_EQ(format.from_f32(-middle), even | 0x8000) << bits;
      ASSERT_EQ(format.from_f32(std::nextafter(middle, 0.0f)), bits) << bits;
      ASSERT_EQ(format.from_f32(std::nextafter(middle, INFINITY)), bits + 1) << bits;
    }
    EXPECT_EQ(format.from_f32(std::numeric_limits<float>::max()), infinity);
    EXPECT_EQ(format.from_f32(-INFINITY), infinity | 0x8000);
  }
}

TEST(DTypeTest, signalling_nans_with_low_payloads_stay_nan) {
  for (const uint32_t bits : {0x7f800001u, 0xff800001u, 0x7fffffffu, 0x7fc00000u}) {
    const auto value = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value)))) << bits;
    EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value)))) << bits;
  }
}

TEST(DTypeTest, names_and_sizes) {
  EXPECT_EQ(name(DType::kF32), "f32");
  EXPECT_EQ(name(DType::kBF16), "bf16");
  EXPECT_EQ(name(DType::kI64), "i64");
  for (const auto& [dtype, bytes] : {std::pair{DType::kF32, 4},
                                     {DType::kF16, 2},
                                     {DType::kBF16, 2},
                                     {DType::kI8, 1},
                                     {DType::kU8, 1},
                                     {DType::kI32, 4},
                                     {DType::kI64, 8}})
    EXPECT_EQ(size_of(dtype), bytes) << name(dtype);
}

}  // namespace
}  // namespace whit
