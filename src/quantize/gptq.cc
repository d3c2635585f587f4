#include "quantize/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "quant/range.h"
#include "quantize/reductions.h"
#include "tensor/dtype.h"

namespace whit {
namespace {

constexpr int64_t kBlock = Hessian::kBlock;
constexpr int kRangeSteps = 16;  // ranges 1.00, 0.97 … 0.55 of the largest
constexpr float kRangeStep = 0.03f;
constexpr float kLeastShare = 1.0f - kRangeStep * (kRangeSteps - 1);
constexpr float kStepShares[] = {1.0f, 0.87f, 0.75f};  // two-level steps, of what holds all groups
constexpr double kEnough = 0.002;  // share of the error that another sweep must gain

// The codes of a weight, relative to their zero points: a value is code · scale.
struct Grid {
  Grid(const Tensor& w, const QuantArgs& args)
      : n(w.dim(0)),
        k(w.dim(1)),
        int4(args.num_bits == 4),
        symmetric(args.symmetric),
        two_level(args.two_level),
        group(int4 ? args.group_size : k),
        groups(ceil_div(k, group)),
        levels(int4 ? 15.0f : 254.0f),
        scale(n * groups),
        lowest(n * groups),
        step(two_level ? n : 0),
        codes(DType::kF32, {n, k}) {}

  // The scale of group `at` as it is stored.
  float stored(float value, int64_t at) const {
    if (two_level) {
      const float row_step = step[at / groups];
      return std::clamp(std::nearbyintf(value / row_step), 1.0f,
                        static_cast<float>(most_multiple(-lowest[at]))) *
             row_step;
    }
    return int4 ? f16_to_f32(f32_to_f16(std::clamp(value, 0x1p-24f, 65504.0f)))
                : std::max(value, 1e-30f);
  }
  // The code nearest to a value in units of the scale.
  float nearest(float value, int64_t at) const {
    const float low = lowest[at];
    return round_nearest(std::clamp(value, low, low + levels));
  }

  int64_t n, k;
  bool int4, symmetric, two_level;
  int64_t group, groups;
  float levels;                      // codes are lowest … lowest + levels
  std::vector<float> scale, lowest;  // [N, G]
  std::vector<float> step;           // [N] of two-level scales
  Tensor codes;                      // f32 [N, K]
};

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

// Σ cost·(w − Q(w))² of a group of columns from `first` on.
double range_cost(const float* w, std::span<const float> cost, int64_t first, int64_t count,
                  float scale, float lowest, float levels) {
  const float inverse = 1.0f / scale, highest = lowest + levels;
  return blocked_sum(count, [&](int64_t i) {
    const float code = round_nearest(std::clamp(w[first + i] * inverse, lowest, highest));
    const float d = w[first + i] - code * scale;
    return cost[first + i] * d * d;
  });
}

// Of one row of two-level scales: the step, and for it the multiples, of least cost.
void choose_two_level_ranges(const float* w, std::span<const float> cost, int64_t row, Grid& grid) {
  const std::vector<ValueRange> ranges = clipped_ranges(w, grid.k, grid.group, nullptr);
  std::vector<Int4Params> nearest(grid.groups), whole(grid.groups), chosen(grid.groups);
  int4_row_params(ranges, grid.symmetric, true, nearest.data());
  float most = 0;
  for (int64_t g = 0; g < grid.groups; ++g) {
    whole[g] = int4_params(ranges[g].low, ranges[g].high, grid.symmetric);
    most = std::max(most, whole[g].scale / static_cast<float>(most_multiple(whole[g].zero)));
  }
  const auto keep = [&](const std::vector<Int4Params>& params, float step) {
    grid.step[row] = step;
    for (int64_t g = 0; g < grid.groups; ++g) {
      grid.scale[row * grid.groups + g] = params[g].scale;
      grid.lowest[row * grid.groups + g] = -params[g].zero;
    }
  };
  keep(nearest, two_level_step_above(most));
  if (cost.empty()) return;
  double least = 0;
  for (const float share : kStepShares) {
    const float step = two_level_step_above(most * share);
    double total = 0;
    for (int64_t g = 0; g < grid.groups; ++g) {
      const int64_t first = g * grid.group, count = std::min(grid.group, grid.k - first);
      const float zero = whole[g].zero, multiples = whole[g].scale / step;
      const int largest = std::min(most_multiple(zero), static_cast<int>(std::ceil(multiples)));
      int multiple = std::clamp(static_cast<int>(multiples * kLeastShare), 1, std::max(largest, 1));
      double best = -1;
      for (; multiple <= std::max(largest, 1); ++multiple) {
        const float scale = static_cast<float>(multiple) * step;
        const double error = range_cost(w, cost, first, count, scale, -zero, grid.levels);
        if (best >= 0 && !(error < best)) continue;
        best = error;
        chosen[g] = {scale, zero};
      }
      total += best;
    }
    if (share == kStepShares[0] || total < least) {
      least = total;
      keep(chosen, step);
    }
  }
}

// Ranges of the groups: plain rounding's, or, with `cost` [K], the share of it that makes
// Σ cost·(w − Q(w))² least.
void choose_ranges(const Tensor& w, std::span<const float> cost, ThreadPool& pool, Grid& grid) {
  const int steps = cost.empty() ? 1 : kRangeSteps;
  pool.parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = w.data<float>() + row * grid.k;
      if (grid.two_level) {
        choose_two_level_ranges(from, cost, row, grid);
        continue;
      }
      for (int64_t g = 0; g < grid.groups; ++g) {
        const int64_t first = g * grid.group, count = std::min(grid.group, grid.k - first);
        const ValueRange range = value_range(from + first, count);
        const int64_t at = row * grid.groups + g;
        double best = 0;
        bool any = false;
        const auto consider = [&](float scale, float lowest) {
          const double error =
              cost.empty() ? 0 : range_cost(from, cost, first, count, scale, lowest, grid.levels);
          if (any && !(error < best)) return;
          any = true;
          best = error;
          grid.scale[at] = scale;
          grid.lowest[at] = lowest;
        };
        for (int step = 0; step < steps; ++step) {
          const float share = 1.0f - kRangeStep * static_cast<float>(step);
          if (grid.int4) {
            const Int4Params params =
                int4_params(range.low * share, range.high * share, grid.symmetric);
            consider(params.scale, -params.zero);
          } else {
            consider(std::max(range.largest(), 1e-30f) * share / 127.0f, -127.0f);
          }
        }
      }
    }
  });
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

QuantizedTensor pack(const Grid& grid, ThreadPool& pool) {
  QuantizedTensor out =
      make_quantized(grid.int4 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel, grid.n,
                     grid.k, grid.int4 ? grid.group : 0, grid.symmetric, grid.two_level);
  pool.parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* code = grid.codes.data<float>() + row * grid.k;
      if (!grid.int4) {
        out.scales.data<float>()[row] = grid.scale[row];
        for (int64_t i = 0; i < grid.k; ++i)
          out.data.data<int8_t>()[row * grid.k + i] = static_cast<int8_t>(code[i]);
        continue;
      }
      uint8_t* bytes = out.data.data<uint8_t>() + row * ceil_div(grid.k, 2);
      for (int64_t g = 0; g < grid.groups; ++g) {
        const int64_t at = row * grid.groups + g;
        const auto zero = static_cast<int>(-grid.lowest[at]);
        out.scales.data<uint16_t>()[at] = f32_to_f16(grid.scale[at]);
        if (!grid.symmetric)
          out.zeros.data<uint8_t>()[row * ceil_div(grid.groups, 2) + g / 2] |=
              static_cast<uint8_t>(zero << (4 * (g & 1)));
        for (int64_t i = g * grid.group; i < std::min(grid.k, (g + 1) * grid.group); ++i)
          bytes[i / 2] |= static_cast<uint8_t>((static_cast<int>(code[i]) + zero) << (4 * (i & 1)));
      }
    }
  });
  return out;
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
