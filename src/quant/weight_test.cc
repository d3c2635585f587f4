#include "quant/weight.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "base/error.h"

namespace whit {
namespace {

std::vector<float> normal(int64_t count, float deviation, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, deviation);
  std::vector<float> result(count);
  for (float& value : result) value = distribution(random);
  return result;
}

QuantizedTensor rtn(const std::vector<float>& w, WeightFormat format, int64_t n, int64_t k,
                    int64_t group_size, bool symmetric, const float* clip = nullptr) {
  QuantizedTensor result = make_quantized(format, n, k, group_size, symmetric);
  quantize_rows_rtn(w.data(), 0, n, clip, result);
  return result;
}

std::vector<float> dequantize(const WeightView& view) {
  std::vector<float> result(view.n * view.k);
  dequantize_rows(view, 0, view.n, result.data());
  return result;
}

TEST(WeightTest, floating_point_rows_are_widened_exactly) {
  const int64_t n = 3, k = 5;
  const std::vector<float> w = normal(n * k, 1.0f, 1);
  std::vector<uint16_t> f16(w.size()), bf16(w.size());
  std::transform(w.begin(), w.end(), f16.begin(), f32_to_f16);
  std::transform(w.begin(), w.end(), bf16.begin(), f32_to_bf16);
  EXPECT_EQ(dequantize({.format = WeightFormat::kF32, .n = n, .k = k, .data = w.data()}), w);
  std::vector<float> row(k);
  dequantize_rows({.format = WeightFormat::kF16, .n = n, .k = k, .data = f16.data()}, 2, 3,
                  row.data());
  for (int64_t i = 0; i < k; ++i) EXPECT_EQ(row[i], f16_to_f32(f16[2 * k + i]));
  dequantize_rows({.format = WeightFormat::kBF16, .n = n, .k = k, .data = bf16.data()}, 1, 2,
                  row.data());
  for (int64_t i = 0; i < k; ++i) EXPECT_EQ(row[i], bf16_to_f32(bf16[k + i]));
}

TEST(WeightTest, int4_codes_scales_and_zero_points_are_where_the_header_says) {
  // One row of 5 in groups of 4: codes 1 2 3 4 | 15, scales 0.5 and 2, zero points 3 and 9.
  const uint8_t data[] = {0x21, 0x43, 0x0f}, zeros[] = {0x93};
  const uint16_t scales[] = {f32_to_f16(0.5f), f32_to_f16(2.0f)};
  WeightView view{.format = WeightFormat::kInt4Group,
                  .n = 1,
                  .k = 5,
                  .group_size = 4,
                  .data = data,
                  .scales = scales,
                  .zeros = zeros};
  EXPECT_EQ(view.groups(), 2);
  EXPECT_EQ(view.bytes(), 3 + 4 + 1);
  EXPECT_EQ(dequantize(view), (std::vector<float>{-1.0f, -0.5f, 0.0f, 0.5f, 12.0f}));
  view.zeros = nullptr;  // symmetric: zero point 8
  EXPECT_EQ(view.bytes(), 3 + 4);
  EXPECT_EQ(dequantize(view), (std::vector<float>{-3.5f, -3.0f, -2.5f, -2.0f, 14.0f}));
}

TEST(WeightTest, int8_rows_have_a_scale_each) {
  const int8_t data[] = {-127, 0, 127, 1, 2, 3};
  const float scales[] = {0.5f, 10.0f};
  const WeightView view{
      .format = WeightFormat::kInt8Channel, .n = 2, .k = 3, .data = data, .scales = scales};
  EXPECT_EQ(dequantize(view), (std::vector<float>{-63.5f, 0, 63.5f, 10, 20, 30}));
  EXPECT_EQ(view.bytes(), 6 + 8);
}

TEST(WeightTest, fp8_rows_are_e4m3_numbers_with_a_scale_each) {
  const uint8_t data[] = {0x7e, 0xb8, 0x01, 0x38, 0x00, 0x80};  // 448, −1, 2⁻⁹ | 1, 0, −0
  const float scales[] = {0.5f, 10.0f};
  const WeightView view{
      .format = WeightFormat::kFp8Channel, .n = 2, .k = 3, .data = data, .scales = scales};
  EXPECT_EQ(dequantize(view), (std::vector<float>{224, -0.5f, 0x1p-10f, 10, 0, 0}));
  EXPECT_EQ(view.bytes(), 6 + 8);
}

// The largest of a row is kept, the others are within half a step of three bits of fraction, or of
// the smallest numbers.
TEST(WeightTest, fp8_rounding_is_within_half_a_step_of_every_weight) {
  const int64_t n = 5, k = 700;
  std::vector<float> w = normal(n * k, 0.02f, 8);
  for (int64_t i = 0; i < k; ++i) w[i] = 0;
  for (int64_t i = 0; i < k; ++i) w[k + i] *= std::exp2(static_cast<float>(-i) / 30);
  const QuantizedTensor rounded = rtn(w, WeightFormat::kFp8Channel, n, k, 0, true);
  const std::vector<float> values = dequantize(rounded.view());
  for (int64_t row = 0; row < n; ++row) {
    const float scale = rounded.scales.data<float>()[row];
    float largest = 0, found = 0;
    for (int64_t i = 0; i < k; ++i) {
      largest = std::max(largest, std::fabs(w[row * k + i]));
      found = std::max(found, std::fabs(values[row * k + i]));
      EXPECT_NEAR(values[row * k + i], w[row * k + i],
                  std::max(std::fabs(w[row * k + i]) * 0x1p-4f, scale * 0x1p-10f) * (1 + 1e-6f));
    }
    EXPECT_NEAR(found, largest, largest * 1e-6f);
  }
}

TEST(WeightTest, two_level_scales_are_small_multiples_of_a_row_s_step) {
  const int64_t n = 9, k = 300, group_size = 32, groups = ceil_div(k, group_size);
  std::vector<float> w = normal(n * k, 0.02f, 4);
  for (int64_t i = 0; i < k; ++i) {
    w[i] *= 1e-6f;                           // near what f16 can hold
    w[k + i] = 0;                            // a row of zeros
    w[2 * k + i] = std::fabs(w[2 * k + i]);  // zero points 0
    w[3 * k + i] *= i < 32 ? 1e5f : 1;       // one group far above the others
  }
  for (const bool symmetric : {false, true}) {
    QuantizedTensor two =
        make_quantized(WeightFormat::kInt4Group, n, k, group_size, symmetric, true);
    quantize_rows_rtn(w.data(), 0, n, nullptr, two);
    const std::vector<float> values = dequantize(two.view());
    for (int64_t row = 0; row < n; ++row) {
      std::vector<uint8_t> multiples(groups);
      const float step = two_level_row(two.view(), row, multiples.data());
      for (int64_t g = 0; g < groups; ++g) {
        EXPECT_GE(multiples[g], 1);
        EXPECT_LE(multiples[g], 15);
        EXPECT_EQ(f16_to_f32(two.scales.data<uint16_t>()[row * groups + g]), multiples[g] * step);
      }
      for (int64_t i = 0; i < k; ++i) {  // a row of int8 codes
        const float code = values[row * k + i] / step;
        EXPECT_EQ(code, std::nearbyintf(code));
        EXPECT_LE(std::fabs(code), 127);
      }
    }
    // Where groups are alike a multiple is 8 or more: scales are off by a sixteenth at most, codes
    // by half, and the range's ends by what the scale lacks.
    for (int64_t row = 4; row < n; ++row)
      for (int64_t i = 0; i < k; ++i) {
        const float scale = f16_to_f32(two.scales.data<uint16_t>()[row * groups + i / group_size]);
        EXPECT_NEAR(values[row * k + i], w[row * k + i], (0.5f + 15.0f / 16.0f) * scale);
      }
  }
}

TEST(WeightTest, two_level_scales_stay_such_where_a_row_is_divided) {
  const int64_t k = 256, groups = 8;
  const std::vector<float> w = normal(k, 0.02f, 5);
  QuantizedTensor two = make_quantized(WeightFormat::kInt4Group, 1, k, 32, false, true);
  quantize_rows_rtn(w.data(), 0, 1, nullptr, two);
  const std::vector<float> before = dequantize(two.view());
  std::vector<uint8_t> multiples(groups), after(groups);
  two_level_row(two.view(), 0, multiples.data());
  divide_row(two, 0, 1.37f);
  two_level_row(two.view(), 0, after.data());
  EXPECT_EQ(after, multiples);
  const std::vector<float> values = dequantize(two.view());
  for (int64_t i = 0; i < k; ++i)  // the step is rounded to 7 bits
    EXPECT_NEAR(values[i], before[i] / 1.37f, std::fabs(values[i]) * 0x1p-7f);
}

TEST(WeightTest, int4_rounding_is_within_half_a_step_over_ragged_shapes) {
  for (const int64_t n : {1, 3})
    for (const int64_t k : {1, 7, 31, 32, 33, 100, 576})
      for (const int64_t group_size : {32, 64, 128})
        for (const bool symmetric : {false, true}) {
          SCOPED_TRACE(fmt::format("n={} k={} group={} symmetric={}", n, k, group_size, symmetric));
          const std::vector<float> w = normal(n * k, 0.05f, static_cast<uint32_t>(k));
          const QuantizedTensor q = rtn(w, WeightFormat::kInt4Group, n, k, group_size, symmetric);
          EXPECT_EQ(q.view().groups(), (k + group_size - 1) / group_size);
          const std::vector<float> back = dequantize(q.view());
          const auto* scales = q.scales.data<uint16_t>();
          for (int64_t i = 0; i < n * k; ++i) {
            const float scale = f16_to_f32(scales[i / k * q.view().groups() + i % k / group_size]);
            // Half a step, and what rounding the scale to f16 takes from the ends of the range.
            EXPECT_LE(std::fabs(w[i] - back[i]), scale * (0.5f + 15 * 0x1p-11f + 1e-5f)) << i;
          }
        }
}

TEST(WeightTest, int8_rounding_is_within_half_a_step) {
  const int64_t n = 4, k = 77;
  const std::vector<float> w = normal(n * k, 0.3f, 2);
  const QuantizedTensor q = rtn(w, WeightFormat::kInt8Channel, n, k, 0, true);
  const std::vector<float> back = dequantize(q.view());
  for (int64_t row = 0; row < n; ++row) {
    float largest = 0;
    for (int64_t i = 0; i < k; ++i) largest = std::max(largest, std::fabs(w[row * k + i]));
    EXPECT_FLOAT_EQ(q.scales.data<float>()[row], largest / 127);
    for (int64_t i = 0; i < k; ++i)
      EXPECT_LE(std::fabs(w[row * k + i] - back[row * k + i]),
                largest / 127 * (0.5f + 127 * 0x1p-23f));
  }
}

TEST(WeightTest, what_is_on_the_grid_is_kept_exactly) {
  // Steps of 1/8 with every code of the range present.
  std::vector<float> w(32);
  for (int i = 0; i < 32; ++i) w[i] = static_cast<float>(i % 16 - 5) / 8;
  EXPECT_EQ(dequantize(rtn(w, WeightFormat::kInt4Group, 1, 32, 32, false).view()), w);
  for (float& value : w) value = std::round(value * 8);
  w[0] = -127;
  EXPECT_EQ(dequantize(rtn(w, WeightFormat::kInt8Channel, 1, 32, 0, true).view()), w);
}

TEST(WeightTest, groups_of_zeros_and_of_one_sign_and_extreme_size_stay_sane) {
  for (const bool symmetric : {false, true})
    for (const float value : {0.0f, 1e-30f, 1e-8f, 5.0f, -5.0f, 1e6f, -1e6f, 3e38f}) {
      SCOPED_TRACE(fmt::format("{} symmetric={}", value, symmetric));
      const std::vector<float> w(32, value);
      const std::vector<float> back =
          dequantize(rtn(w, WeightFormat::kInt4Group, 1, 32, 32, symmetric).view());
      for (const float b : back) {
        EXPECT_TRUE(std::isfinite(b));
        if (value == 0) {
          EXPECT_EQ(b, 0);
        }
        if (std::fabs(value) == 5) {
          EXPECT_NEAR(b, value, 5.0f / 7.5f * 0.51f);
        }
        EXPECT_GE(b * value, 0) << "a sign was lost";
      }
      const std::vector<float> back8 =
          dequantize(rtn(w, WeightFormat::kInt8Channel, 1, 32, 0, true).view());
      for (const float b : back8) {
        EXPECT_TRUE(std::isfinite(b));
        if (std::fabs(value) >= 1e-8f || value == 0) {
          EXPECT_NEAR(b, value, std::fabs(value) * 1e-6f);
        }
      }
    }
}

TEST(WeightTest, a_clip_bounds_the_range_and_saturates_beyond_it) {
  std::vector<float> w = normal(64, 0.1f, 3);
  w[5] = 4.0f;
  w[40] = -3.0f;
  const float clip[] = {0.25f, 0.25f};
  for (const bool symmetric : {false, true}) {
    const std::vector<float> back =
        dequantize(rtn(w, WeightFormat::kInt4Group, 1, 64, 32, symmetric, clip).view());
    for (int i = 0; i < 64; ++i) {
      // Half a step beyond the clip at most: the zero point is rounded.
      EXPECT_LE(std::fabs(back[i]), 0.25f + 0.5f / 15 * 0.51f + 1e-3f) << i;
      EXPECT_LE(std::fabs(back[i] - std::clamp(w[i], -0.25f, 0.25f)), 0.5f / 15 * 1.02f) << i;
    }
    EXPECT_GT(back[5], 0.2f);
    EXPECT_LT(back[40], -0.2f);
  }
}

TEST(WeightTest, rows_quantized_in_parts_equal_rows_quantized_at_once) {
  const int64_t n = 5, k = 70;
  const std::vector<float> w = normal(n * k, 1.0f, 4);
  for (const WeightFormat format : {WeightFormat::kInt4Group, WeightFormat::kInt8Channel}) {
    const QuantizedTensor whole = rtn(w, format, n, k, 32, false);
    QuantizedTensor parts = make_quantized(format, n, k, 32, false);
    quantize_rows_rtn(w.data() + 2 * k, 2, 5, nullptr, parts);
    quantize_rows_rtn(w.data(), 0, 2, nullptr, parts);
    EXPECT_EQ(dequantize(whole.view()), dequantize(parts.view())) << name(format);
  }
}

TEST(WeightTest, a_searched_round_trip_gives_the_numbers_that_are_stored) {
  const int64_t k = 256;
  const std::vector<float> w = normal(k, 0.02f, 5);
  for (const bool symmetric : {false, true}) {
    const std::vector<float> back =
        dequantize(rtn(w, WeightFormat::kInt4Group, 1, k, 64, symmetric).view());
    for (int64_t g = 0; g < k / 64; ++g) {
      const auto [low, high] = std::minmax_element(w.begin() + g * 64, w.begin() + (g + 1) * 64);
      const Int4Params params = int4_params(*low, *high, symmetric);
      EXPECT_EQ(f16_to_f32(f32_to_f16(params.scale)), params.scale);
      for (int64_t i = g * 64; i < (g + 1) * 64; ++i)
        EXPECT_EQ(int4_round_trip(w[i], params, 1.0f / params.scale), back[i]) << i;
    }
  }
}

TEST(WeightTest, only_quantized_formats_can_be_made) {
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16})
    EXPECT_THROW(make_quantized(format, 1, 1, 32, true), Error) << name(format);
}

}  // namespace
}  // namespace whit
