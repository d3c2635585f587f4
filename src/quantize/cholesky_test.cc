#include "quantize/cholesky.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace whit {
namespace {

std::vector<double> random_positive_definite(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> b(n * n), a(n * n, 0.0);
  for (double& value : b) value = normal(random);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t p = 0; p < n; ++p) a[i * n + j] += b[i * n + p] * b[j * n + p];
      if (i == j) a[i * n + j] += 1;
    }
  return a;
}

TEST(CholeskyTest, the_factor_times_its_transpose_is_the_matrix) {
  for (const int64_t n : {1, 2, 63, 64, 65, 150}) {
    const std::vector<double> a = random_positive_definite(n, 5);
    std::vector<double> first;
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      std::vector<double> l = a;
      ASSERT_TRUE(cholesky(l.data(), n, pool));
      double largest = 0;
      for (int64_t i = 0; i < n; ++i) largest = std::max(largest, a[i * n + i]);
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) {
          double sum = 0;
          for (int64_t p = 0; p <= j; ++p) sum += l[i * n + p] * l[j * n + p];
          // The backward error of the factorization: (n + 1) rounding errors of the diagonal.
          EXPECT_NEAR(sum, a[i * n + j], static_cast<double>(n + 1) * 2.3e-16 * largest);
        }
      if (threads == 1) first = l;
      EXPECT_EQ(l, first);
    }
  }
}

TEST(CholeskyTest, matrices_that_are_not_positive_definite_or_not_finite_are_refused) {
  ThreadPool pool(2);
  const int64_t n = 100;
  std::vector<double> a = random_positive_definite(n, 6);
  a[80 * n + 80] = -1;
  EXPECT_FALSE(cholesky(a.data(), n, pool));
  a = random_positive_definite(n, 6);
  a[90 * n + 3] = std::nan("");
  EXPECT_FALSE(cholesky(a.data(), n, pool));
  std::vector<double> zero(n * n, 0.0);
  EXPECT_FALSE(cholesky(zero.data(), n, pool));
}

}  // namespace
}  // namespace whit
