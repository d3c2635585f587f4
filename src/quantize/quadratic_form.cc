#include "quantize/quadratic_form.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/reductions.h"

namespace whit {
namespace {

constexpr int64_t kRank = 48;    // of the estimate
constexpr int64_t kBlock = 128;  // columns: few enough to skip much, enough for a fast product

// Fresh memory costs more than a product with few columns: it is kept from call to call.
float* at_least(Tensor& scratch, int64_t size) {
  if (scratch.empty() || scratch.size() < size) scratch = Tensor(DType::kF32, {size});
  return scratch.data<float>();
}

// f(row) for every row, in parallel.
template <typename F>
std::vector<double> by_row(int64_t rows, ThreadPool& pool, F&& f) {
  std::vector<double> values(rows);
  pool.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) values[row] = f(row);
  });
  return values;
}

}  // namespace

QuadraticForm::QuadraticForm(const Tensor& a, Matmul& matmul) : matmul_(matmul) {
  const int64_t k = a.dim(0);
  Tensor lower(DType::kF32, {std::min(kBlock, k), k});
  for (int64_t first = 0; first < k; first += kBlock) {
    const int64_t columns = std::min(kBlock, k - first), width = first + columns;
    for (int64_t i = 0; i < columns; ++i) {
      const float* from = a.data<float>() + (first + i) * k;
      float* to = lower.data<float>() + i * width;
      for (int64_t j = 0; j < first; ++j) to[j] = 2 * from[j];
      std::copy_n(from + first, columns, to + first);
    }
    blocks_.push_back({first, matmul.pack(lower.data<float>(), columns, width)});
  }
}

std::vector<double> QuadraticForm::rows(const Tensor& d) const {
  const int64_t n = d.dim(0), k = d.dim(1);
  float* product = at_least(product_, n * k);
  for (const Block& block : blocks_)
    matmul_.multiply(d.data<float>(), k, n, block.weight, product + block.first, k);
  return by_row(n, matmul_.pool(),
                [&](int64_t row) { return dot(d.data<float>() + row * k, product + row * k, k); });
}

double QuadraticForm::total(const Tensor& d) const {
  const std::vector<double> values = rows(d);
  return std::accumulate(values.begin(), values.end(), 0.0);
}

CholeskyColumns cholesky_columns(const Tensor& a) {
  const int64_t k = a.dim(0), rank = std::min(kRank, k);
  std::vector<float> rest;
  for (int64_t i = 0; i < k; ++i) rest.push_back(std::max(0.0f, a.data<float>()[i * k + i]));
  Tensor factor = Tensor::zeros(DType::kF32, {rank, k});
  for (int64_t step = 0; step < rank; ++step) {
    const int64_t pivot = std::max_element(rest.begin(), rest.end()) - rest.begin();
    if (rest[pivot] <= 0) break;
    float* column = factor.data<float>() + step * k;
    std::copy_n(a.data<float>() + pivot * k, k, column);
    for (int64_t earlier = 0; earlier < step; ++earlier) {
      const float* other = factor.data<float>() + earlier * k;
      const float share = other[pivot];
      for (int64_t i = 0; i < k; ++i) column[i] -= share * other[i];
    }
    const float inverse = 1 / std::sqrt(rest[pivot]);
    for (int64_t i = 0; i < k; ++i) {
      column[i] *= inverse;
      rest[i] = std::max(0.0f, rest[i] - column[i] * column[i]);
    }
    rest[pivot] = 0;
  }
  return {std::move(factor), std::move(rest)};
}

QuadraticEstimate::QuadraticEstimate(CholeskyColumns columns, Matmul& matmul)
    : matmul_(matmul),
      factor_(
          matmul.pack(columns.factor.data<float>(), columns.factor.dim(0), columns.factor.dim(1))),
      rest_(std::move(columns.rest)) {}

double QuadraticEstimate::total(const Tensor& d) const {
  const int64_t n = d.dim(0), k = d.dim(1), rank = factor_.n;
  float* product = at_least(product_, n * rank);
  matmul_.multiply(d.data<float>(), k, n, factor_, product, rank);
  const std::vector<double> values = by_row(n, matmul_.pool(), [&](int64_t row) {
    const float* p = product + row * rank;
    return dot(p, p, rank) + weighted_squares(d.data<float>() + row * k, rest_.data(), k);
  });
  return std::accumulate(values.begin(), values.end(), 0.0);
}

}  // namespace whit
