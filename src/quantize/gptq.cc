#include "quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quantize/grid.h"

namespace whit {
namespace {

constexpr int64_t kBlock = Hessian::kBlock;
constexpr double kEnough = 0.002;  // share of the error that another sweep must gain

// W·s, or a copy.
Tensor scaled(const Tensor& w, const float* s, ThreadPool& pool) {
  Tensor result = w.clone();
  const int64_t k = w.dim(1);
  if (s != nullptr)
    pool.parallel_for(w.dim(0), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t i = 0; i < k; ++i) result.data<float>()[row * k + i] *= s[i];
    });
  return result;
}

// The pass of GPTQ over all columns: fills grid.codes. With factors s [K] the grid is that of W·s,
// all else is in the space of W. Returns the error.
double compensate(const Tensor& w, const float* s, const Hessian& hessian, Matmul& matmul,
                  Grid& grid) {
  const int64_t n = grid.n, k = grid.k;
  const std::span<const int64_t> order = hessian.order();
  Tensor residual(DType::kF32, {n, k}), carried(DType::kF32, {n, kBlock});  // in the order
  std::vector<double> errors(n, 0.0);
  for (int64_t index = 0; index < hessian.blocks(); ++index) {
    const int64_t first = index * kBlock, count = std::min(kBlock, k - first);
    if (index > 0)
      matmul.multiply(residual.data<float>(), k, n, hessian.feedback(index), carried.data<float>(),
                      kBlock);
    matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
      float wanted[kBlock];
      for (int64_t row = begin; row < end; ++row) {
        const float* from = w.data<float>() + row * k;
        const float* carry = carried.data<float>() + row * kBlock;
        float* code = grid.codes.data<float>() + row * k;
        float* d = residual.data<float>() + row * k + first;
        for (int64_t i = 0; i < count; ++i)
          wanted[i] = from[order[first + i]] + (index > 0 ? carry[i] : 0.0f);
        for (int64_t j = 0; j < count; ++j) {
          const int64_t channel = order[first + j], at = row * grid.groups + channel / grid.group;
          const float factor = s == nullptr ? 1.0f : s[channel], scale = grid.scale[at];
          code[channel] = grid.nearest(wanted[j] * factor * (1.0f / scale), at);
          const float value = code[channel] * scale / factor;
          const double miss = wanted[j] - value;
          errors[row] += hessian.conditional()[channel] * miss * miss;
          d[j] = from[channel] - value;
          const float* feedback = hessian.feedback_within(index, j);
          for (int64_t i = j + 1; i < count; ++i) wanted[i] += feedback[i] * d[j];
        }
      }
    });
  }
  return std::accumulate(errors.begin(), errors.end(), 0.0);
}

// One row's share of a block of columns while codes and scales are improved.
struct BlockRow {
  float* codes;     // of the block's first column on
  float* residual;  // w − value
  float* gradient;  // residual · H
};

// Coordinate descent over the codes of a block: each goes to the grid point nearest to its optimum
// given all others. Returns by how much the error fell.
double descend(const Hessian& hessian, const Grid& grid, int64_t row, int64_t first, int64_t count,
               const BlockRow& at) {
  double gain = 0;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t channel = first + j, group = row * grid.groups + channel / grid.group;
    const float* h = hessian.row(channel) + first;
    const float scale = grid.scale[group];
    const float code = grid.nearest(at.codes[j] + at.gradient[j] / (h[j] * scale), group);
    if (code == at.codes[j]) continue;
    const float step = (at.codes[j] - code) * scale;
    const double fall = -(2.0 * at.gradient[j] + static_cast<double>(step) * h[j]) * step;
    if (!(fall > 0)) continue;
    gain += fall;
    at.codes[j] = code;
    at.residual[j] += step;
    for (int64_t i = 0; i < count; ++i) at.gradient[i] += step * h[i];
  }
  return gain;
}

// The least-squares scale of each group of a block, given its codes, where the stored one lowers
// the error.
double refit(const Hessian& hessian, Grid& grid, int64_t row, int64_t first, int64_t count,
             const BlockRow& at) {
  double gain = 0;
  float product[kBlock];  // H · codes of the group
  for (int64_t start = 0; start < count; start += grid.group) {
    const int64_t size = std::min(grid.group, count - start);
    std::fill_n(product, count, 0.0f);
    double slope = 0, curvature = 0;
    for (int64_t j = start; j < start + size; ++j) {
      if (at.codes[j] == 0) continue;
      const float* h = hessian.row(first + j) + first;
      for (int64_t i = 0; i < count; ++i) product[i] += at.codes[j] * h[i];
      slope += static_cast<double>(at.codes[j]) * at.gradient[j];
    }
    for (int64_t j = start; j < start + size; ++j)
      curvature += static_cast<double>(at.codes[j]) * product[j];
    if (!(curvature > 0)) continue;
    const int64_t group = row * grid.groups + (first + start) / grid.group;
    float& scale = grid.scale[group];
    const float stored = grid.stored(scale + static_cast<float>(slope / curvature), group);
    const float step = stored - scale;
    const double fall = (2 * slope - step * curvature) * step;
    if (!(fall > 0)) continue;
    gain += fall;
    scale = stored;
    for (int64_t j = start; j < start + size; ++j) at.residual[j] -= step * at.codes[j];
    for (int64_t i = 0; i < count; ++i) at.gradient[i] -= step * product[i];
  }
  return gain;
}

// Improves codes and scales until a sweep gains little.
void refine(const Tensor& w, const Hessian& hessian, int sweeps, Matmul& matmul, Grid& grid) {
  const int64_t n = grid.n, k = grid.k;
  const bool aligned = kBlock % grid.group == 0;
  Tensor residual(DType::kF32, {n, k}), gradient(DType::kF32, {n, kBlock});
  std::vector<double> gains(n), errors(n);
  for (int sweep = 0; sweep < sweeps; ++sweep) {
    matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        gains[row] = errors[row] = 0;
        for (int64_t i = 0; i < k; ++i)
          residual.data<float>()[row * k + i] =
              w.data<float>()[row * k + i] - grid.codes.data<float>()[row * k + i] *
                                                 grid.scale[row * grid.groups + i / grid.group];
      }
    });
    for (int64_t index = 0; index < hessian.blocks(); ++index) {
      const int64_t first = index * kBlock, count = std::min(kBlock, k - first);
      matmul.multiply(residual.data<float>(), k, n, hessian.block(index), gradient.data<float>(),
                      kBlock);
      matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const BlockRow at{grid.codes.data<float>() + row * k + first,
                            residual.data<float>() + row * k + first,
                            gradient.data<float>() + row * kBlock};
          for (int64_t i = 0; i < count; ++i)
            errors[row] += static_cast<double>(at.residual[i]) * at.gradient[i];
          gains[row] += descend(hessian, grid, row, first, count, at);
          if (aligned) gains[row] += refit(hessian, grid, row, first, count, at);
        }
      });
    }
    const double error = std::accumulate(errors.begin(), errors.end(), 0.0);
    const double gain = std::accumulate(gains.begin(), gains.end(), 0.0);
    if (!(gain > kEnough * error)) break;
  }
}

}  // namespace

TrialRounding try_compensated(const Tensor& w, const float* s, const Hessian& hessian, double noise,
                              const QuantArgs& args, Matmul& matmul) {
  Grid grid(w, args);
  choose_ranges(scaled(w, s, matmul.pool()), {}, matmul.pool(), grid);
  TrialRounding result{Tensor(), compensate(w, s, hessian, matmul, grid)};
  result.values = std::move(grid.codes);
  std::vector<double> squares(grid.n, 0.0);
  matmul.pool().parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* values = result.values.data<float>() + row * grid.k;
      for (int64_t i = 0; i < grid.k; ++i) {
        values[i] *= grid.scale[row * grid.groups + i / grid.group];
        squares[row] += static_cast<double>(values[i]) * values[i];
      }
    }
  });
  result.error += noise * std::accumulate(squares.begin(), squares.end(), 0.0);
  return result;
}

CompensatedWeight round_compensated(const Tensor& w, const Hessian& hessian, const QuantArgs& args,
                                    const Compensation& options, Matmul& matmul) {
  Grid grid(w, args);
  choose_ranges(w, options.search_ranges ? hessian.conditional() : std::span<const float>(),
                matmul.pool(), grid);
  compensate(w, nullptr, hessian, matmul, grid);
  if (options.sweeps > 0) refine(w, hessian, options.sweeps, matmul, grid);
  CompensatedWeight result{pack(grid, matmul.pool()), Tensor(DType::kF32, {grid.n, grid.k})};
  matmul.pool().parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    dequantize_rows(result.weight.view(), begin, end, result.values.data<float>() + begin * grid.k);
  });
  return result;
}

}  // namespace whit
