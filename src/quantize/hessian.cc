#include "quantize/hessian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/cholesky.h"

namespace whit {
namespace {

constexpr double kLargestDamping = 1.0;  // of the mean of the diagonal

}  // namespace

Hessian::Hessian(const Tensor& gram, double noise, Matmul& matmul)
    : k_(gram.dim(0)), matrix_(gram.clone()), order_(k_) {
  float* h = matrix_.data<float>();
  double mean = 0;
  for (int64_t i = 0; i < k_; ++i) mean += (h[i * k_ + i] += static_cast<float>(noise));
  mean /= static_cast<double>(k_);
  if (!std::isfinite(mean)) {
    note_ = "the inputs' statistics are not finite: rounded to nearest";
    return;
  }
  if (!(mean > 0)) mean = 1;  // no input ever differs from zero: any rounding is as good
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](int64_t a, int64_t b) { return h[a * k_ + a] > h[b * k_ + b]; });
  double damping = kDamping;
  while (!(factored_ = factor(damping * mean, matmul)) && damping < kLargestDamping) damping *= 10;
  if (!factored_) {
    note_ = "the inputs' statistics are not positive definite: rounded to nearest";
    return;
  }
  if (damping > kDamping)
    note_ = fmt::format("damping was raised to {} of the mean energy to factor the statistics",
                        damping);
  for (int64_t i = 0; i < k_; ++i) h[i * k_ + i] += static_cast<float>(damping * mean);
  for (int64_t first = 0; first < k_; first += kBlock)
    blocks_.push_back(matmul.pack(h + first * k_, std::min(kBlock, k_ - first), k_));
}

bool Hessian::factor(double damping, Matmul& matmul) {
  // V is upper triangular in the order of rounding: the plain factor of the reversed order.
  Buffer buffer(k_ * k_ * static_cast<int64_t>(sizeof(double)));
  auto* l = buffer.as<double>();
  const auto reversed = [&](int64_t i) { return order_[k_ - 1 - i]; };
  matmul.pool().parallel_for(k_, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = row(reversed(i));
      for (int64_t j = 0; j <= i; ++j) l[i * k_ + j] = from[reversed(j)];
      l[i * k_ + i] += damping;
    }
  });
  if (!cholesky(l, k_, matmul.pool())) return false;
  // M_ij = V_ji / V_ii = L[K−1−j][K−1−i] / L[K−1−i][K−1−i]
  const auto entry = [&](int64_t i, int64_t j) { return l[(k_ - 1 - j) * k_ + (k_ - 1 - i)]; };
  conditional_.resize(k_);
  for (int64_t i = 0; i < k_; ++i)
    conditional_[order_[i]] = static_cast<float>(entry(i, i) * entry(i, i));
  within_ = Tensor::zeros(DType::kF32, {blocks() * kBlock, kBlock});
  feedback_.clear();
  for (int64_t index = 0; index < blocks(); ++index) {
    const int64_t first = index * kBlock, count = std::min(kBlock, k_ - first);
    for (int64_t j = 0; j < count; ++j)
      for (int64_t i = j + 1; i < count; ++i)
        within_.data<float>()[(first + j) * kBlock + i] =
            static_cast<float>(entry(first + i, first + j) / entry(first + i, first + i));
    if (first == 0) {
      feedback_.emplace_back();
      continue;
    }
    Tensor before(DType::kF32, {count, first});
    matmul.pool().parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < first; ++j)
          before.data<float>()[i * first + j] =
              static_cast<float>(entry(first + i, j) / entry(first + i, first + i));
    });
    feedback_.push_back(matmul.pack(before.data<float>(), count, first));
  }
  return true;
}

}  // namespace whit
