#include "quantize/grid.h"

#include <algorithm>
#include <cmath>

#include "calibrate/accelerator.h"
#include "quantize/reductions.h"
#include "tensor/dtype.h"

namespace whit {
namespace {

constexpr int kRangeSteps = 16;  // ranges 1.00, 0.97 … 0.55 of the largest
constexpr float kRangeStep = 0.03f;
static_assert(GroupErrors::kLeastMultiple == 1.0f - kRangeStep * (kRangeSteps - 1));

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
  const TwoLevelRow groups(w, grid);
  std::vector<Int4Params> chosen(grid.groups);
  const auto keep = [&](float step) {
    grid.step[row] = step;
    for (int64_t g = 0; g < grid.groups; ++g) {
      grid.scale[row * grid.groups + g] = chosen[g].scale;
      grid.lowest[row * grid.groups + g] = -chosen[g].zero;
    }
  };
  if (cost.empty()) {
    int4_row_params(groups.ranges, grid.symmetric, true, chosen.data());
    return keep(two_level_step_above(groups.step));
  }
  double least = 0;
  for (const float share : kTwoLevelShares) {
    const float step = two_level_step_above(groups.step * share);
    double total = 0;
    for (int64_t g = 0; g < grid.groups; ++g) {
      const int64_t first = g * grid.group, count = std::min(grid.group, grid.k - first);
      const float zero = groups.whole[g].zero;
      const auto [smallest, largest] = groups.multiples(g, step);
      double best = -1;
      for (int multiple = smallest; multiple <= largest; ++multiple) {
        const float scale = static_cast<float>(multiple) * step;
        const double error = range_cost(w, cost, first, count, scale, -zero, grid.levels);
        if (best >= 0 && !(error < best)) continue;
        best = error;
        chosen[g] = {scale, zero};
      }
      total += best;
    }
    if (share == kTwoLevelShares[0] || total < least) {
      least = total;
      keep(step);
    }
  }
}

}  // namespace

TwoLevelRow::TwoLevelRow(const float* w, const Grid& grid)
    : ranges(clipped_ranges(w, grid.k, grid.group, nullptr)), step(0) {
  for (const ValueRange& range : ranges) {
    whole.push_back(int4_params(range.low, range.high, grid.symmetric));
    step =
        std::max(step, whole.back().scale / static_cast<float>(most_multiple(whole.back().zero)));
  }
}

TwoLevelRow::Multiples TwoLevelRow::multiples(int64_t group, float row_step) const {
  const float exact = whole[group].scale / row_step;
  const int most =
      std::max(1, std::min(most_multiple(whole[group].zero), static_cast<int>(std::ceil(exact))));
  return {std::clamp(static_cast<int>(exact * GroupErrors::kLeastMultiple), 1, most), most};
}

void choose_ranges(const Tensor& w, std::span<const float> cost, ThreadPool& pool, Grid& grid) {
  // A float's steps are as fine in a smaller range: nothing is to be gained by cutting it.
  const int steps = cost.empty() || grid.e4m3 ? 1 : kRangeSteps;
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
              steps == 1 ? 0 : range_cost(from, cost, first, count, scale, lowest, grid.levels);
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
            consider(std::max(range.largest(), 1e-30f) * share / grid.largest, -grid.largest);
          }
        }
      }
    }
  });
}

void round_to_grid(const Tensor& w, ThreadPool& pool, Grid& grid) {
  pool.parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < grid.k; ++i) {
        const int64_t at = row * grid.groups + i / grid.group;
        grid.codes.data<float>()[row * grid.k + i] =
            grid.nearest(w.data<float>()[row * grid.k + i] * (1.0f / grid.scale[at]), at);
      }
  });
}

QuantizedTensor pack(const Grid& grid, ThreadPool& pool) {
  QuantizedTensor out =
      make_quantized(grid.int4   ? WeightFormat::kInt4Group
                     : grid.e4m3 ? WeightFormat::kFp8Channel
                                 : WeightFormat::kInt8Channel,
                     grid.n, grid.k, grid.int4 ? grid.group : 0, grid.symmetric, grid.two_level);
  pool.parallel_for(grid.n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* code = grid.codes.data<float>() + row * grid.k;
      if (!grid.int4) {
        out.scales.data<float>()[row] = grid.scale[row];
        for (int64_t i = 0; i < grid.k; ++i)
          out.data.data<uint8_t>()[row * grid.k + i] =
              grid.e4m3 ? f32_to_e4m3(code[i]) : static_cast<uint8_t>(static_cast<int8_t>(code[i]));
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

}  // namespace whit
