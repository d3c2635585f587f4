#include "tensor/e4m3.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace whit {
namespace {

// By the definition: sign, four bits of exponent, three of fraction.
double value_of(int code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -9) : std::ldexp(8 + fraction, exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

TEST(E4m3, has_the_values_of_its_definition_and_keeps_all_of_its_numbers) {
  for (int code = 0; code < 256; ++code) {
    const float value = e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(e4m3_is_nan(static_cast<uint8_t>(code)));
      continue;
    }
    EXPECT_EQ(value, value_of(code)) << code;
    EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
    EXPECT_EQ(f32_to_e4m3(value), code);
    EXPECT_EQ(round_to_e4m3(value), value);
  }
}

TEST(E4m3, ties_go_to_the_even_fraction) {
  for (int code = 0; code < 126; ++code)
    for (const int sign : {0, 0x80}) {
      const auto tie =
          static_cast<float>((value_of(code | sign) + value_of((code + 1) | sign)) / 2);
      const int even = code % 2 == 0 ? code : code + 1;
      EXPECT_EQ(f32_to_e4m3(tie), even | sign) << code;
      // The least bit beside it decides.
      EXPECT_EQ(f32_to_e4m3(std::nextafterf(tie, 0)), code | sign);
      const float beyond = std::nextafterf(tie, sign == 0 ? 1000.0f : -1000.0f);
      EXPECT_EQ(f32_to_e4m3(beyond), (code + 1) | sign);
    }
}

TEST(E4m3, rounds_to_the_nearest_number) {
  std::mt19937 random(6);
  std::uniform_real_distribution<float> exponent(-12.0f, 8.8f);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::exp2(exponent(random)) * (random() % 2 == 0 ? 1 : -1);
    const float nearest = round_to_e4m3(x);
    for (int code = 0; code < 256; ++code)
      if ((code & 0x7f) != 0x7f) {
        ASSERT_LE(std::fabs(double{nearest} - x), std::fabs(value_of(code) - x)) << x;
      }
    ASSERT_EQ(e4m3_to_f32(f32_to_e4m3(x)), nearest);
  }
}

TEST(E4m3, saturates_and_keeps_NaN) {
  EXPECT_EQ(f32_to_e4m3(464.0f), 0x7e);
  EXPECT_EQ(f32_to_e4m3(-1e30f), 0xfe);
  EXPECT_EQ(f32_to_e4m3(INFINITY), 0x7e);
  EXPECT_TRUE(e4m3_is_nan(f32_to_e4m3(NAN)));
  EXPECT_TRUE(std::isnan(round_to_e4m3(NAN)));
  EXPECT_EQ(f32_to_e4m3(0x1p-10f), 0);  // a tie with 0
  EXPECT_EQ(f32_to_e4m3(-0.0f), 0x80);
}

}  // namespace
}  // namespace whit
