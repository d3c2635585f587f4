#include "quantize/gptq.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace whit {
namespace {

struct Format {
  int bits;
  int64_t group;
  bool symmetric;
  bool two_level = false;
  QuantArgs args() const {
    return bits == 4 ? QuantArgs{.num_bits = 4,
                                 .symmetric = symmetric,
                                 .strategy = QuantStrategy::kGroup,
                                 .group_size = group,
                                 .two_level = two_level}
                     : QuantArgs{.num_bits = 8, .strategy = QuantStrategy::kChannel};
  }
  QuantizedTensor make(int64_t n, int64_t k) const {
    return make_quantized(bits == 4 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel, n, k,
                          bits == 4 ? group : 0, symmetric, two_level);
  }
};
constexpr Format kFormats[] = {{4, 32, false},      {4, 32, true},        {4, 128, false},
                               {4, 48, false},      {8, 0, true},         {4, 32, false, true},
                               {4, 64, true, true}, {4, 128, false, true}};

Tensor random_weight(int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Tensor w(DType::kF32, {n, k});
  for (float& value : w.f32()) value = 0.05f * normal(random);
  return w;
}

// Of inputs that are mixtures of few sources with some noise: strongly correlated, of uneven
// energy.
Tensor correlated_gram(int64_t k, int64_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const int64_t sources = std::max<int64_t>(1, k / 8);
  std::vector<float> mixing(k * sources), source(sources), x(k);
  for (float& value : mixing) value = normal(random);
  Tensor gram = Tensor::zeros(DType::kF32, {k, k});
  for (int64_t t = 0; t < tokens; ++t) {
    for (float& value : source) value = normal(random);
    for (int64_t i = 0; i < k; ++i) {
      x[i] = 0.5f * normal(random);
      for (int64_t p = 0; p < sources; ++p) x[i] += mixing[i * sources + p] * source[p];
      x[i] *= static_cast<float>(1 + i % 5);
    }
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j)
        gram.data<float>()[i * k + j] += x[i] * x[j] / static_cast<float>(tokens);
  }
  return gram;
}

double loss(const Tensor& w, const Tensor& values, const Hessian& hessian) {
  const int64_t n = w.dim(0), k = w.dim(1);
  double total = 0;
  for (int64_t row = 0; row < n; ++row)
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j)
        total += (w.data<float>()[row * k + i] - values.data<float>()[row * k + i]) *
                 static_cast<double>(hessian.row(i)[j]) *
                 (w.data<float>()[row * k + j] - values.data<float>()[row * k + j]);
  return total;
}

template <typename T>
std::vector<T> bytes_of(const Tensor& tensor) {
  const auto* begin = tensor.data<T>();
  return {begin, begin + tensor.bytes() / static_cast<int64_t>(sizeof(T))};
}

struct Fixture {
  explicit Fixture(int threads = 2) : pool(threads), matmul(pool, cpu::detected_isa()) {}
  ThreadPool pool;
  Matmul matmul;
};

TEST(GptqTest, without_correlations_it_is_rounding_to_nearest) {
  Fixture fixture;
  const int64_t n = 5, k = 144;  // groups of 32, 48 and 128 end short or exactly
  const Tensor w = random_weight(n, k, 1);
  Tensor gram = Tensor::zeros(DType::kF32, {k, k});
  for (int64_t i = 0; i < k; ++i) gram.data<float>()[i * k + i] = static_cast<float>(1 + i % 7);
  const Hessian hessian(gram, 0, fixture.matmul);
  ASSERT_TRUE(hessian.factored());
  for (const Format& format : kFormats) {
    QuantizedTensor nearest = format.make(n, k);
    quantize_rows_rtn(w.data<float>(), 0, n, nullptr, nearest);
    const CompensatedWeight rounded = round_compensated(
        w, hessian, format.args(), {.search_ranges = false, .sweeps = 0}, fixture.matmul);
    EXPECT_EQ(bytes_of<uint8_t>(rounded.weight.data), bytes_of<uint8_t>(nearest.data));
    EXPECT_EQ(bytes_of<uint8_t>(rounded.weight.scales), bytes_of<uint8_t>(nearest.scales));
    if (!nearest.zeros.empty())
      EXPECT_EQ(bytes_of<uint8_t>(rounded.weight.zeros), bytes_of<uint8_t>(nearest.zeros));
  }
}

// GPTQ as published, through the Cholesky factor of the inverse, in f64 without blocks.
std::vector<float> textbook(const Tensor& w, const Hessian& hessian, const QuantizedTensor& grid) {
  const int64_t n = w.dim(0), k = w.dim(1);
  const std::span<const int64_t> order = hessian.order();
  std::vector<double> inverse(k * k, 0.0), h(k * k);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) h[i * k + j] = hessian.row(order[i])[order[j]];
  for (int64_t i = 0; i < k; ++i) inverse[i * k + i] = 1;
  for (int64_t p = 0; p < k; ++p) {  // Gauss-Jordan
    const double pivot = h[p * k + p];
    for (int64_t j = 0; j < k; ++j) h[p * k + j] /= pivot, inverse[p * k + j] /= pivot;
    for (int64_t i = 0; i < k; ++i) {
      if (i == p) continue;
      const double factor = h[i * k + p];
      for (int64_t j = 0; j < k; ++j) {
        h[i * k + j] -= factor * h[p * k + j];
        inverse[i * k + j] -= factor * inverse[p * k + j];
      }
    }
  }
  std::vector<float> values(n * k);
  for (int64_t row = 0; row < n; ++row) {
    std::vector<double> rest(k), left = inverse;
    for (int64_t i = 0; i < k; ++i) rest[i] = w.data<float>()[row * k + order[i]];
    for (int64_t p = 0; p < k; ++p) {
      const int64_t g = order[p] / grid.group_size;
      const double scale =
          f16_to_f32(grid.scales.data<uint16_t>()[row * ceil_div(k, grid.group_size) + g]);
      const int zero =
          (grid.zeros.data<uint8_t>()[row * grid.zeros.dim(1) + g / 2] >> (4 * (g & 1))) & 15;
      const double code = std::clamp(std::nearbyint(rest[p] / scale) + zero, 0.0, 15.0) - zero;
      const double value = code * scale, error = (rest[p] - value) / left[p * k + p];
      values[row * k + order[p]] = static_cast<float>(value);
      for (int64_t i = p; i < k; ++i) rest[i] -= error * left[p * k + i];
      // Eliminates column p from the inverse.
      const std::vector<double> pivot_row(left.begin() + p * k, left.begin() + (p + 1) * k);
      for (int64_t i = p + 1; i < k; ++i)
        for (int64_t j = p + 1; j < k; ++j)
          left[i * k + j] -= pivot_row[i] * pivot_row[j] / pivot_row[p];
    }
  }
  return values;
}

TEST(GptqTest, equals_the_published_recursion) {
  Fixture fixture;
  const int64_t n = 3, k = 160;  // two blocks
  const Tensor w = random_weight(n, k, 2);
  const Hessian hessian(correlated_gram(k, 4 * k, 3), 0, fixture.matmul);
  const Format format{4, 32, false};
  const CompensatedWeight rounded = round_compensated(
      w, hessian, format.args(), {.search_ranges = false, .sweeps = 0}, fixture.matmul);
  const std::vector<float> expected = textbook(w, hessian, rounded.weight);
  // In exact arithmetic they are the same; in f32 a value may fall on the other side of a tie,
  // after which a row goes its own way, with an error as small.
  int64_t differ = 0;
  for (int64_t i = 0; i < n * k; ++i) differ += rounded.values.data<float>()[i] != expected[i];
  EXPECT_EQ(differ, 0);
}

TEST(GptqTest, a_trial_with_factors_reports_the_error_of_its_values) {
  Fixture fixture;
  const int64_t n = 6, k = 200;
  const Tensor w = random_weight(n, k, 10);
  const Hessian hessian(correlated_gram(k, 2 * k, 11), 0, fixture.matmul);
  std::vector<float> s(k);
  for (int64_t i = 0; i < k; ++i) s[i] = std::exp2(static_cast<float>(i % 9 - 4) / 2);
  for (const Format& format : kFormats) {
    TrialRounding trial = try_compensated(w, s.data(), hessian, 0, format.args(), fixture.matmul);
    for (int64_t i = 0; i < n * k; ++i) trial.values.data<float>()[i] /= s[i % k];
    // f32 sums of k terms on the way.
    const double expected = loss(w, trial.values, hessian);
    EXPECT_NEAR(trial.error, expected, static_cast<double>(k) * 6e-8 * 100 * expected);
  }
}

TEST(GptqTest, each_step_lowers_the_error_under_correlated_inputs) {
  Fixture fixture;
  const int64_t n = 24, k = 272;
  const Tensor w = random_weight(n, k, 4);
  const Hessian hessian(correlated_gram(k, 2 * k, 5), 0.01, fixture.matmul);
  for (const Format& format : kFormats) {
    QuantizedTensor grid = format.make(n, k);
    quantize_rows_rtn(w.data<float>(), 0, n, nullptr, grid);
    Tensor nearest(DType::kF32, {n, k});
    dequantize_rows(grid.view(), 0, n, nearest.data<float>());
    const auto error = [&](const Compensation& options) {
      const CompensatedWeight rounded =
          round_compensated(w, hessian, format.args(), options, fixture.matmul);
      std::vector<float> values(n * k);
      dequantize_rows(rounded.weight.view(), 0, n, values.data());
      EXPECT_EQ(values, bytes_of<float>(rounded.values));
      return loss(w, rounded.values, hessian);
    };
    const double plain = loss(w, nearest, hessian);
    const double compensated = error({.search_ranges = false, .sweeps = 0});
    EXPECT_LT(compensated, 0.8 * plain) << format.bits << " " << format.group;
    double before = compensated;
    for (const int sweeps : {1, 2, 8}) {
      const double refined = error({.search_ranges = false, .sweeps = sweeps});
      EXPECT_LE(refined, before * (1 + 1e-5)) << format.bits << " " << format.group;
      before = refined;
    }
    EXPECT_LT(before, compensated) << format.bits << " " << format.group;
  }
}

TEST(GptqTest, the_result_does_not_depend_on_the_number_of_threads) {
  const int64_t n = 7, k = 208;
  const Tensor w = random_weight(n, k, 6), gram = correlated_gram(k, k, 7);
  for (const Format& format : kFormats) {
    std::vector<uint8_t> codes, scales;
    for (const int threads : {1, 3}) {
      Fixture fixture(threads);
      const Hessian hessian(gram, 0, fixture.matmul);
      const CompensatedWeight rounded =
          round_compensated(w, hessian, format.args(), {}, fixture.matmul);
      if (threads == 1) {
        codes = bytes_of<uint8_t>(rounded.weight.data);
        scales = bytes_of<uint8_t>(rounded.weight.scales);
      }
      EXPECT_EQ(bytes_of<uint8_t>(rounded.weight.data), codes);
      EXPECT_EQ(bytes_of<uint8_t>(rounded.weight.scales), scales);
    }
  }
}

TEST(HessianTest, dead_and_duplicate_channels_are_harmless) {
  Fixture fixture;
  const int64_t n = 4, k = 64;
  Tensor gram = correlated_gram(k, 16, 8);  // of rank 16
  for (int64_t i = 0; i < k; ++i)
    for (const int64_t dead : {3, 40}) {
      gram.data<float>()[dead * k + i] = 0;
      gram.data<float>()[i * k + dead] = 0;
    }
  for (const bool all_dead : {false, true}) {
    if (all_dead) std::fill_n(gram.data<float>(), k * k, 0.0f);
    const Hessian hessian(gram, 0, fixture.matmul);
    ASSERT_TRUE(hessian.factored());
    EXPECT_EQ(hessian.note(), "");
    const Tensor w = random_weight(n, k, 9);
    const CompensatedWeight rounded =
        round_compensated(w, hessian, Format{4, 32, false}.args(), {}, fixture.matmul);
    for (int64_t i = 0; i < n * k; ++i) {
      EXPECT_TRUE(std::isfinite(rounded.values.data<float>()[i]));
      EXPECT_NEAR(rounded.values.data<float>()[i], w.data<float>()[i], 0.5f);
    }
  }
}

TEST(HessianTest, raised_damping_and_failure_are_told) {
  Fixture fixture;
  const int64_t k = 32;
  Tensor gram = Tensor::zeros(DType::kF32, {k, k});
  for (int64_t i = 0; i < k; ++i) gram.data<float>()[i * k + i] = 1;
  gram.data<float>()[1] = gram.data<float>()[k] = 1.05f;  // eigenvalue −0.05
  const Hessian raised(gram, 0, fixture.matmul);
  EXPECT_TRUE(raised.factored());
  EXPECT_NE(raised.note().find("damping"), std::string::npos);
  gram.data<float>()[1] = gram.data<float>()[k] = 5;
  const Hessian failed(gram, 0, fixture.matmul);
  EXPECT_FALSE(failed.factored());
  EXPECT_NE(failed.note().find("rounded to nearest"), std::string::npos);
  gram.data<float>()[1] = gram.data<float>()[k] = 0;
  gram.data<float>()[0] = std::numeric_limits<float>::quiet_NaN();
  const Hessian broken(gram, 0, fixture.matmul);
  EXPECT_FALSE(broken.factored());
  EXPECT_NE(broken.note().find("not finite"), std::string::npos);
}

}  // namespace
}  // namespace whit
