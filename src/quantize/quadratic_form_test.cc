#include "quantize/quadratic_form.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace whit {
namespace {

// xᵀ·x of `tokens` rows whose channels have very different sizes, [K, K].
Tensor random_gram(int64_t k, int64_t tokens, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(tokens * k);
  for (int64_t i = 0; i < tokens * k; ++i) x[i] = normal(random) / static_cast<float>(1 + i % k);
  Tensor gram(DType::kF32, {k, k});
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j) {
      double sum = 0;
      for (int64_t t = 0; t < tokens; ++t) sum += static_cast<double>(x[t * k + i]) * x[t * k + j];
      gram.data<float>()[i * k + j] = static_cast<float>(sum);
    }
  return gram;
}

Tensor random_rows(int64_t n, int64_t k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  Tensor rows(DType::kF32, {n, k});
  for (float& value : rows.f32()) value = normal(random);
  return rows;
}

double plain(const Tensor& a, const float* d) {
  const int64_t k = a.dim(0);
  double sum = 0;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t j = 0; j < k; ++j)
      sum += static_cast<double>(d[i]) * a.data<float>()[i * k + j] * d[j];
  return sum;
}

TEST(QuadraticFormTest, rows_equal_the_plain_double_sum_over_ragged_widths) {
  ThreadPool pool(2);
  Matmul matmul(pool, cpu::detected_isa());
  std::mt19937 random(5);
  for (const int64_t k : {1, 7, 127, 128, 129, 300}) {
    const Tensor gram = random_gram(k, 40, random), d = random_rows(5, k, random);
    const std::vector<double> values = QuadraticForm(gram, matmul).rows(d);
    ASSERT_EQ(values.size(), 5u);
    for (int64_t row = 0; row < 5; ++row) {
      const float* values_of_row = d.data<float>() + row * k;
      double magnitude = 0;
      for (int64_t i = 0; i < k; ++i)
        for (int64_t j = 0; j < k; ++j)
          magnitude +=
              std::fabs(values_of_row[i] * gram.data<float>()[i * k + j] * values_of_row[j]);
      // f32 sums of K terms, each rounded by at most 2⁻²⁴ of the sum of magnitudes.
      EXPECT_NEAR(values[row], plain(gram, values_of_row),
                  2 * static_cast<double>(k + 2) * 6e-8 * magnitude)
          << k;
    }
  }
}

TEST(QuadraticFormTest, the_estimate_is_exact_where_the_rank_suffices) {
  ThreadPool pool(2);
  Matmul matmul(pool, cpu::detected_isa());
  std::mt19937 random(6);
  for (const int64_t k : {3, 40, 200}) {
    const Tensor gram = random_gram(k, 30, random), d = random_rows(9, k, random);
    const double exact = QuadraticForm(gram, matmul).total(d);
    // The factorization's f32 errors are about rank · 2⁻²⁴ of the largest diagonal entry.
    EXPECT_NEAR(QuadraticEstimate(cholesky_columns(gram), matmul).total(d), exact, 1e-3 * exact)
        << k;
  }
}

TEST(QuadraticFormTest, the_estimate_of_a_zero_matrix_is_zero) {
  ThreadPool pool(1);
  Matmul matmul(pool, cpu::detected_isa());
  std::mt19937 random(7);
  const Tensor d = random_rows(2, 64, random);
  EXPECT_EQ(
      QuadraticEstimate(cholesky_columns(Tensor::zeros(DType::kF32, {64, 64})), matmul).total(d),
      0);
}

}  // namespace
}  // namespace whit
