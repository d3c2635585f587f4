// Every row of the table of small operations against ops/reference, over ragged shapes.
#include "kernels/cpu/small_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/small_ops_test_util.h"
#include "ops/reference/activation.h"
#include "ops/reference/embedding.h"
#include "ops/reference/norm.h"
#include "ops/reference/quantize.h"
#include "ops/reference/rope.h"

namespace whit::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr double kEps = 0x1p-24;  // rounding of one f32 operation

// Int8Rows with its storage, filled with a pattern that a kernel must overwrite.
struct Int8Storage {
  Int8Storage(int64_t m, int64_t k, int64_t group_size, float static_scale = 0)
      : q(m * round_up(k, 64), 77), scale(m, -1.0f), sums(m * ceil_div(k, group_size), 12345) {
    rows = {.q = q.data(),
            .stride = round_up(k, 64),
            .scale = scale.data(),
            .group_sums = sums.data(),
            .group_size = group_size,
            .static_scale = static_scale};
  }
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> sums;
  Int8Rows rows;
};

void expect_equal(const Int8Storage& got, const Int8Storage& want) {
  EXPECT_EQ(got.q, want.q);
  EXPECT_EQ(got.sums, want.sums);
  for (size_t i = 0; i < want.scale.size(); ++i)
    EXPECT_TRUE(got.scale[i] == want.scale[i] ||
                (std::isnan(got.scale[i]) && std::isnan(want.scale[i])))
        << got.scale[i] << " vs " << want.scale[i];
}

class SmallOpsTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!cpu_has(GetParam())) GTEST_SKIP() << "this CPU has no " << isa_name(GetParam());
  }
  const SmallOps& ops() const { return small_ops(GetParam()); }
};

TEST_P(SmallOpsTest, is_found_under_its_own_isa) { EXPECT_EQ(ops().isa, GetParam()); }

TEST_P(SmallOpsTest, quantize_equals_the_reference_bit_for_bit) {
  std::mt19937 random(1);
  for (const int64_t m : {1, 2, 17})
    for (const int64_t k : {1, 31, 32, 33, 64, 100, 576, 1536})
      for (const int64_t group_size : {int64_t{32}, int64_t{64}, int64_t{128}, k})
        for (const float static_scale : {0.0f, 0.01f}) {
          SCOPED_TRACE(fmt::format("m={} k={} group={} static={}", m, k, group_size, static_scale));
          const std::vector<float> x = normal(random, m * k, 3.0f);
          Int8Storage want(m, k, group_size, static_scale), got(m, k, group_size, static_scale);
          const auto args = [&](const Int8Storage& q) {
            return QuantizeArgs{.x = x.data(), .x_stride = k, .m = m, .k = k, .q = q.rows};
          };
          reference::quantize(args(want));
          on_workers(3, [&](const Worker& worker) { ops().quantize(args(got), worker); });
          expect_equal(got, want);
        }
}

TEST_P(SmallOpsTest, quantize_rounds_ties_to_even_and_clamps_to_127) {
  const std::vector<float> x = {0.5f,  1.5f,   2.5f,    -0.5f, -1.5f,
                                -2.5f, 127.5f, -128.0f, 1e30f, -1e30f};
  Int8Storage q(1, 10, 10, 1.0f);
  ops().quantize({.x = x.data(), .x_stride = 10, .m = 1, .k = 10, .q = q.rows}, Worker{});
  const std::vector<int8_t> want = {0, 2, 2, 0, -2, -2, 127, -127, 127, -127};
  EXPECT_TRUE(std::equal(want.begin(), want.end(), q.q.begin()));
}

TEST_P(SmallOpsTest, quantize_survives_zero_subnormal_infinite_and_nan_rows) {
  const int64_t k = 40;
  for (const float special : {0.0f, 1e-45f, 1e-37f, kInfinity, -kInfinity, kNan, 3e38f}) {
    SCOPED_TRACE(special);
    std::vector<float> x(k, special == 0.0f || std::fabs(special) < 1e-30f ? 0.0f : 1.0f);
    x[7] = x[39] = special;
    Int8Storage want(1, k, 32), got(1, k, 32);
    reference::quantize({.x = x.data(), .x_stride = k, .m = 1, .k = k, .q = want.rows});
    ops().quantize({.x = x.data(), .x_stride = k, .m = 1, .k = k, .q = got.rows}, Worker{});
    expect_equal(got, want);
    EXPECT_EQ(std::isfinite(got.scale[0]), std::isfinite(special));
  }
}

TEST_P(SmallOpsTest, quantize_needs_no_group_sums) {
  const std::vector<float> x(48, 2.0f);
  Int8Storage q(1, 48, 48);
  q.rows.group_sums = nullptr;
  ops().quantize({.x = x.data(), .x_stride = 48, .m = 1, .k = 48, .q = q.rows}, Worker{});
  EXPECT_EQ(q.q[47], 127);
  EXPECT_EQ(q.q[48], 0);
  EXPECT_EQ(q.sums[0], 12345);
}

TEST_P(SmallOpsTest, rms_norm_is_within_the_rounding_of_its_sum) {
  std::mt19937 random(2);
  for (const int64_t m : {1, 5})
    for (const int64_t d : {1, 7, 8, 20, 64, 575, 576, 4096}) {
      SCOPED_TRACE(fmt::format("m={} d={}", m, d));
      const int64_t stride = d + 3;
      const std::vector<float> x = normal(random, m * stride, 2.0f),
                               weight = normal(random, d, 1.0f);
      std::vector<float> want(m * stride, 9.0f), got(m * stride, 9.0f);
      RmsNormArgs args{.x = x.data(),
                       .x_stride = stride,
                       .weight = weight.data(),
                       .eps = 1e-5f,
                       .m = m,
                       .d = d,
                       .y_stride = stride};
      args.y = want.data();
      reference::rms_norm(args);
      args.y = got.data();
      on_workers(2, [&](const Worker& worker) { ops().rms_norm(args, worker); });
      // d additions of positive terms at worst, halved by the square root, and 6 more operations.
      const double relative = (static_cast<double>(d) / 2 + 6) * kEps;
      for (int64_t row = 0; row < m; ++row)
        for (int64_t i = 0; i < stride; ++i) {
          const double w = want[row * stride + i];
          EXPECT_NEAR(got[row * stride + i], w, std::fabs(w) * relative) << row << ", " << i;
        }
    }
}

TEST_P(SmallOpsTest, rms_norm_quantizes_what_it_would_write) {
  std::mt19937 random(3);
  for (const int64_t d : {20, 576, 1000}) {
    SCOPED_TRACE(d);
    const int64_t m = 3;
    const std::vector<float> x = normal(random, m * d, 2.0f), weight = normal(random, d, 1.0f);
    std::vector<float> y(m * d);
    Int8Storage alone(m, d, 128), together(m, d, 128), want(m, d, 128);
    RmsNormArgs args{.x = x.data(),
                     .x_stride = d,
                     .weight = weight.data(),
                     .eps = 1e-5f,
                     .m = m,
                     .d = d,
                     .y_stride = d};
    args.q = alone.rows;
    ops().rms_norm(args, Worker{});
    args.y = y.data();
    args.q = together.rows;
    on_workers(2, [&](const Worker& worker) { ops().rms_norm(args, worker); });
    reference::quantize({.x = y.data(), .x_stride = d, .m = m, .k = d, .q = want.rows});
    expect_equal(alone, want);
    expect_equal(together, want);
  }
}

TEST_P(SmallOpsTest, rms_norm_of_a_row_does_not_depend_on_other_rows_or_workers) {
  std::mt19937 random(4);
  const int64_t m = 7, d = 576;
  const std::vector<float> x = normal(random, m * d, 2.0f), weight = normal(random, d, 1.0f);
  std::vector<float> together(m * d), alone(d);
  RmsNormArgs args{.x = x.data(),
                   .x_stride = d,
                   .weight = weight.data(),
                   .eps = 1e-5f,
                   .m = m,
                   .d = d,
                   .y = together.data(),
                   .y_stride = d};
  on_workers(4, [&](const Worker& worker) { ops().rms_norm(args, worker); });
  args.m = 1;
  args.y = alone.data();
  for (int64_t row = 0; row < m; ++row) {
    args.x = x.data() + row * d;
    ops().rms_norm(args, Worker{});
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * d)) << row;
  }
}

TEST_P(SmallOpsTest, silu_mul_keeps_its_stated_error_over_the_whole_range) {
  std::vector<float> gate, up;
  for (float g = -86.0f; g < 86.0f; g += 0.0371f) {
    gate.push_back(g);
    up.push_back(g > 0 ? 1.0f : -3.0f);
  }
  const auto f = static_cast<int64_t>(gate.size());
  std::vector<float> want(f), got(f);
  SiluMulArgs args{.gate = gate.data(),
                   .gate_stride = f,
                   .up = up.data(),
                   .up_stride = f,
                   .m = 1,
                   .f = f,
                   .y_stride = f};
  args.y = want.data();
  reference::silu_mul(args);
  args.y = got.data();
  on_workers(3, [&](const Worker& worker) { ops().silu_mul(args, worker); });
  for (int64_t i = 0; i < f; ++i)
    EXPECT_NEAR(got[i], want[i], 8 * kEps * std::fabs(want[i])) << "gate " << gate[i];
}

TEST_P(SmallOpsTest, silu_mul_is_finite_for_any_finite_gate_and_shows_nan) {
  const std::vector<float> gate = {-1e30f, -200.0f, -100.0f,   0.0f, 100.0f,
                                   1e30f,  kNan,    kInfinity, -0.0f};
  const std::vector<float> up(gate.size(), 1.0f);
  const auto f = static_cast<int64_t>(gate.size());
  std::vector<float> y(f);
  ops().silu_mul({.gate = gate.data(),
                  .gate_stride = f,
                  .up = up.data(),
                  .up_stride = f,
                  .m = 1,
                  .f = f,
                  .y = y.data(),
                  .y_stride = f},
                 Worker{});
  EXPECT_NEAR(y[0], 0.0f, 1e-7f);
  EXPECT_NEAR(y[1], 0.0f, 1e-30f);
  EXPECT_NEAR(y[2], 0.0f, 1e-30f);
  EXPECT_EQ(y[3], 0.0f);
  EXPECT_EQ(y[4], 100.0f);
  EXPECT_EQ(y[5], 1e30f);
  EXPECT_TRUE(std::isnan(y[6]));
  EXPECT_EQ(y[7], kInfinity);
}

TEST_P(SmallOpsTest, silu_mul_quantizes_what_it_would_write_also_in_place_and_for_long_rows) {
  std::mt19937 random(5);
  for (const int64_t f : {20, 1536, 16384, 20000}) {
    SCOPED_TRACE(f);
    const int64_t m = 2;
    std::vector<float> gate = normal(random, m * f, 2.0f);
    const std::vector<float> up = normal(random, m * f, 1.0f);
    std::vector<float> y(m * f);
    SiluMulArgs args{.gate = gate.data(),
                     .gate_stride = f,
                     .up = up.data(),
                     .up_stride = f,
                     .m = m,
                     .f = f,
                     .y_stride = f};
    args.y = y.data();
    on_workers(2, [&](const Worker& worker) { ops().silu_mul(args, worker); });
    Int8Storage want(m, f, 64), alone(m, f, 64), in_place(m, f, 64);
    reference::quantize({.x = y.data(), .x_stride = f, .m = m, .k = f, .q = want.rows});
    args.y = nullptr;
    args.q = alone.rows;
    ops().silu_mul(args, Worker{});
    expect_equal(alone, want);
    args.y = gate.data();
    args.q = in_place.rows;
    ops().silu_mul(args, Worker{});
    expect_equal(in_place, want);
    EXPECT_EQ(gate, y);
  }
}

TEST_P(SmallOpsTest, silu_mul_of_one_row_is_the_same_on_any_number_of_workers) {
  std::mt19937 random(6);
  const int64_t f = 1000;
  const std::vector<float> gate = normal(random, f, 2.0f), up = normal(random, f, 1.0f);
  std::vector<float> one(f), many(f);
  SiluMulArgs args{.gate = gate.data(),
                   .gate_stride = f,
                   .up = up.data(),
                   .up_stride = f,
                   .m = 1,
                   .f = f,
                   .y = one.data(),
                   .y_stride = f};
  ops().silu_mul(args, Worker{});
  args.y = many.data();
  on_workers(5, [&](const Worker& worker) { ops().silu_mul(args, worker); });
  EXPECT_EQ(one, many);
}

TEST_P(SmallOpsTest, add_and_rope_are_exactly_rounded_products_and_sums) {
  std::mt19937 random(7);
  for (const int64_t n : {1, 9, 64, 577}) {
    const std::vector<float> x = normal(random, n, 1.0f), r = normal(random, n, 1.0f);
    std::vector<float> want(n), got = x;
    reference::add({.x = x.data(), .r = r.data(), .y = want.data(), .count = n});
    on_workers(3, [&](const Worker& worker) {
      ops().add({.x = got.data(), .r = r.data(), .y = got.data(), .count = n}, worker);
    });
    EXPECT_EQ(got, want);
  }
}

TEST_P(SmallOpsTest, rope_rotates_the_first_rotary_dims_of_every_head) {
  std::mt19937 random(8);
  for (const auto& [heads, head_dim, rotary] : {std::tuple<int64_t, int64_t, int64_t>{9, 64, 64},
                                                {3, 20, 20},
                                                {2, 64, 32},
                                                {1, 128, 128},
                                                {2, 10, 6}})
    for (const int64_t t : {1, 5}) {
      SCOPED_TRACE(fmt::format("heads={} dim={} rotary={} t={}", heads, head_dim, rotary, t));
      const int64_t max_positions = 50, stride = heads * head_dim + 5;
      std::vector<float> cos(max_positions * rotary / 2), sin(cos.size());
      for (size_t i = 0; i < cos.size(); ++i) {
        cos[i] = std::cos(static_cast<float>(i));
        sin[i] = std::sin(static_cast<float>(i));
      }
      std::vector<int32_t> positions(t);
      for (int64_t i = 0; i < t; ++i)
        positions[i] = static_cast<int32_t>((i * 17 + 3) % max_positions);
      const std::vector<float> x = normal(random, t * stride, 1.0f);
      std::vector<float> want = x, got = x;
      RopeArgs args{.x_stride = stride,
                    .t = t,
                    .heads = heads,
                    .head_dim = head_dim,
                    .rotary_dims = rotary,
                    .positions = positions.data(),
                    .cos = cos.data(),
                    .sin = sin.data()};
      args.x = want.data();
      reference::rope(args);
      args.x = got.data();
      on_workers(4, [&](const Worker& worker) { ops().rope(args, worker); });
      for (size_t i = 0; i < x.size(); ++i)  // |a|, |b| < 8: two products and a sum, each rounded
        EXPECT_NEAR(got[i], want[i], 3 * kEps * 16) << i;
    }
}

TEST_P(SmallOpsTest, embedding_reads_every_weight_format_exactly) {
  std::mt19937 random(9);
  const int64_t v = 11;
  for (const int64_t d : {20, 64, 75}) {
    const std::vector<float> w = normal(random, v * d, 1.0f);
    std::vector<uint16_t> f16(w.size()), bf16(w.size());
    std::transform(w.begin(), w.end(), f16.begin(), f32_to_f16);
    std::transform(w.begin(), w.end(), bf16.begin(), f32_to_bf16);
    QuantizedTensor int8 = make_quantized(WeightFormat::kInt8Channel, v, d, 0, true);
    QuantizedTensor int4 = make_quantized(WeightFormat::kInt4Group, v, d, 32, false);
    quantize_rows_rtn(w.data(), 0, v, nullptr, int8);
    quantize_rows_rtn(w.data(), 0, v, nullptr, int4);
    const WeightView tables[] = {
        {.format = WeightFormat::kF32, .n = v, .k = d, .data = w.data()},
        {.format = WeightFormat::kF16, .n = v, .k = d, .data = f16.data()},
        {.format = WeightFormat::kBF16, .n = v, .k = d, .data = bf16.data()},
        int8.view(),
        int4.view()};
    const std::vector<int32_t> ids = {10, 0, 3, 3, 7};
    for (const WeightView& table : tables) {
      SCOPED_TRACE(fmt::format("{} d={}", name(table.format), d));
      std::vector<float> want(5 * d), got(5 * d);
      EmbeddingArgs args{.table = table, .ids = ids.data(), .t = 5, .out_stride = d};
      args.out = want.data();
      reference::embedding(args);
      args.out = got.data();
      on_workers(2, [&](const Worker& worker) { ops().embedding(args, worker); });
      EXPECT_EQ(got, want);
    }
  }
}

TEST_P(SmallOpsTest, argmax_takes_the_lowest_index_of_the_largest) {
  std::mt19937 random(10);
  for (const int64_t n : {1, 7, 8, 33, 1000}) {
    std::vector<float> x(n);
    for (int round = 0; round < 50; ++round) {
      for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 9) - 4);
      EXPECT_EQ(ops().argmax(x.data(), n), std::max_element(x.begin(), x.end()) - x.begin());
    }
  }
}

TEST_P(SmallOpsTest, argmax_ignores_nan_and_is_zero_when_nothing_is_larger_than_minus_infinity) {
  std::vector<float> x(20, kNan);
  EXPECT_EQ(ops().argmax(x.data(), 20), 0);
  x[13] = -5.0f;
  EXPECT_EQ(ops().argmax(x.data(), 20), 13);
  x[17] = kInfinity;
  EXPECT_EQ(ops().argmax(x.data(), 20), 17);
  std::fill(x.begin(), x.end(), -kInfinity);
  EXPECT_EQ(ops().argmax(x.data(), 20), 0);
}

double exact_log_sum_exp(const std::vector<float>& x) {
  const double largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

// Σ e^x is taken with a relative error of at most 64 additions and 6 eps of exp; the result is
// rounded to f32 once, after a subtraction x − max that is rounded too.
double lse_tolerance(double lse) { return (70 + 16 + std::fabs(lse)) * kEps; }

TEST_P(SmallOpsTest, log_sum_exp_is_accurate_for_any_length) {
  std::mt19937 random(11);
  for (const int64_t n : {1, 5, 8, 100, 511, 513, 49152}) {
    const std::vector<float> x = normal(random, n, 5.0f);
    const double want = exact_log_sum_exp(x);
    EXPECT_NEAR(ops().log_sum_exp(x.data(), n), want, lse_tolerance(want)) << n;
  }
}

TEST_P(SmallOpsTest, log_sum_exp_handles_infinities) {
  std::vector<float> x(30, -kInfinity);
  EXPECT_EQ(ops().log_sum_exp(x.data(), 30), -kInfinity);
  x[11] = 2.5f;
  EXPECT_EQ(ops().log_sum_exp(x.data(), 30), 2.5f);
  x[12] = kInfinity;
  EXPECT_EQ(ops().log_sum_exp(x.data(), 30), kInfinity);
}

TEST_P(SmallOpsTest, kl_divergence_matches_double_arithmetic_and_is_zero_for_equal_logits) {
  std::mt19937 random(12);
  for (const int64_t n : {1, 9, 700, 49152}) {
    SCOPED_TRACE(n);
    const std::vector<float> x = normal(random, n, 3.0f), noise = normal(random, n, 0.3f);
    std::vector<float> y(n);
    for (int64_t i = 0; i < n; ++i) y[i] = x[i] + noise[i];
    const auto lse_x = static_cast<float>(exact_log_sum_exp(x)),
               lse_y = static_cast<float>(exact_log_sum_exp(y));
    double want = 0, absolute = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double log_p = static_cast<double>(x[i]) - lse_x,
                   term = log_p - (static_cast<double>(y[i]) - lse_y);
      want += std::exp(log_p) * term;
      absolute += std::exp(log_p) * (std::fabs(term) + std::fabs(log_p) + 16);
    }
    EXPECT_NEAR(ops().kl_divergence(x.data(), lse_x, y.data(), lse_y, n), want,
                80 * kEps * absolute);
    EXPECT_EQ(ops().kl_divergence(x.data(), lse_x, x.data(), lse_x, n), 0.0);
  }
}

TEST_P(SmallOpsTest, kl_divergence_counts_masked_tokens_as_zero) {
  std::vector<float> x(20, 0.0f), y(20, 0.0f);
  x[3] = y[3] = -kInfinity;
  y[19] = 1.0f;
  const float lse_x = ops().log_sum_exp(x.data(), 20), lse_y = ops().log_sum_exp(y.data(), 20);
  const double kl = ops().kl_divergence(x.data(), lse_x, y.data(), lse_y, 20);
  EXPECT_TRUE(std::isfinite(kl));
  EXPECT_NEAR(kl, lse_y - lse_x - 1.0 / 19, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Isas, SmallOpsTest,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512),
                         [](const auto& param) { return std::string(isa_name(param.param)); });

}  // namespace
}  // namespace whit::cpu
