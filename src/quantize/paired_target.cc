#include "quantize/paired_target.h"

#include <algorithm>
#include <cmath>

#include "quantize/cholesky.h"
#include "quantize/hessian.h"
#include "quantize/layer.h"
#include "quantize/quadratic_form.h"
#include "quantize/reductions.h"

namespace whit {
namespace {

// E[(y − W·x̂)·x̂ᵀ], [N, K].
Tensor missing_outputs(const Tensor& w, const SplitStats& split, Beside beside, Matmul& matmul) {
  const int64_t n = w.dim(0), k = w.dim(1);
  Tensor missing(DType::kF32, {n, k});
  const auto multiply = [&](const Tensor& right) {
    const cpu::PackedWeight packed = matmul.pack(right.data<float>(), k, k);
    matmul.multiply(w.data<float>(), k, n, packed, missing.data<float>(), k);
  };
  if (beside == Beside::kInputDifference) {
    Tensor transposed(DType::kF32, {k, k});
    for (int64_t i = 0; i < k; ++i)
      for (int64_t j = 0; j < k; ++j)
        transposed.data<float>()[j * k + i] = split.cross.data<float>()[i * k + j];
    multiply(transposed);
    return missing;
  }
  multiply(split.gram);
  for (int64_t i = 0; i < n * k; ++i)
    missing.data<float>()[i] = split.cross.data<float>()[i] - missing.data<float>()[i];
  return missing;
}

// rows·(gram + λ·I)⁻¹, f32 [N, K]; empty where the sum is not positive definite.
Tensor solve(const Tensor& rows, const Tensor& gram, ThreadPool& pool) {
  const int64_t k = gram.dim(0), n = rows.dim(0);
  Buffer buffer(k * k * static_cast<int64_t>(sizeof(double)));
  auto* l = buffer.as<double>();
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += gram.data<float>()[i * k + i];
  mean = mean > 0 ? mean / static_cast<double>(k) : 1.0;
  pool.parallel_for(k, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = 0; j <= i; ++j) l[i * k + j] = gram.data<float>()[i * k + j];
      l[i * k + i] += Hessian::kDamping * mean;
    }
  });
  if (!cholesky(l, k, pool)) return {};
  Tensor out(DType::kF32, {n, k});
  constexpr int64_t kRows = 8;  // that share a pass over L
  pool.parallel_for(ceil_div(n, kRows), [&](int64_t begin, int64_t end) {
    std::vector<double> z(k * kRows);  // [K, kRows]
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * kRows, count = std::min(kRows, n - first);
      std::fill(z.begin(), z.end(), 0.0);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < k; ++i) z[i * kRows + r] = rows.data<float>()[(first + r) * k + i];
      for (int64_t i = 0; i < k; ++i) {
        double sum[kRows];
        for (int64_t r = 0; r < kRows; ++r) sum[r] = z[i * kRows + r];
        for (int64_t j = 0; j < i; ++j) {
          const double a = l[i * k + j];
          for (int64_t r = 0; r < kRows; ++r) sum[r] -= a * z[j * kRows + r];
        }
        for (int64_t r = 0; r < kRows; ++r) z[i * kRows + r] = sum[r] / l[i * k + i];
      }
      for (int64_t i = k - 1; i >= 0; --i) {
        double x[kRows];
        for (int64_t r = 0; r < kRows; ++r) x[r] = z[i * kRows + r] /= l[i * k + i];
        for (int64_t j = 0; j < i; ++j) {
          const double a = l[i * k + j];
          for (int64_t r = 0; r < kRows; ++r) z[j * kRows + r] -= a * x[r];
        }
      }
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < k; ++i)
          out.data<float>()[(first + r) * k + i] = static_cast<float>(z[i * kRows + r]);
    }
  });
  return out;
}

// The t in 0 … 1 that leaves the least error on held-out tokens along W + t·step.
double best_share(const Tensor& w, const Tensor& step, const SplitStats& held_out, Beside beside,
                  Matmul& matmul) {
  const Tensor missing = missing_outputs(w, held_out, beside, matmul);
  const double energy = QuadraticForm(held_out.gram, matmul).total(step);
  const double gain = dot(step.data<float>(), missing.data<float>(), step.size());
  return energy > 0 ? std::clamp(gain / energy, 0.0, 1.0) : 0.0;
}

}  // namespace

PairedTarget paired_target(Tensor w, const InputStats& input, Beside beside, Matmul& matmul) {
  PairedTarget target{.weight = std::move(w)};
  const Tensor step = solve(missing_outputs(target.weight, input.search, beside, matmul),
                            input.search.gram, matmul.pool());
  if (step.empty()) {
    target.note =
        "the inputs' statistics are not positive definite: earlier layers' errors are not "
        "corrected";
    target.failed = true;
    return target;
  }
  target.share = best_share(target.weight, step, input.held_out, beside, matmul);
  if (!(target.share > 0)) {
    target.share = 0;
    target.note = "correcting earlier layers' errors did not help held-out tokens: not done";
    return target;
  }
  for (int64_t i = 0; i < step.size(); ++i)
    target.weight.data<float>()[i] += static_cast<float>(target.share) * step.data<float>()[i];
  return target;
}

}  // namespace whit
