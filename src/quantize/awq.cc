// AWQ, activation-aware weight quantization (Lin et al., MLSys 2024).
//   Scale search (§3.2 there): s = mean|x|^r, r ∈ {0, 1/20 … 1}, normalised by √(max s · min s);
//   the r is kept that minimises E‖Q(W·s)·(x/s) − W·x‖², with x/s in int8 where the scheme says so.
//   r = 0 is plain rounding and always a candidate. Clipping search: per row and group, the range
//   is shrunk to the share of its largest magnitude that minimises the group's own output error
//   d·E[x_g·x_gᵀ]·dᵀ; a linear keeps its clipping only where its whole output error on held-out
//   tokens falls. Of two-level scales steps and multiples are searched by the same error.
// Scaling groups are the graph's: norm→q/k/v, v→o (factors shared by the query heads of a kv head),
// norm→gate/up, up→down. Cost per layer and group: 8 products [N, K]·[K, K], half of each
// left out by symmetry, 21 estimates, and 10 products of width G.
#include <algorithm>
#include <cmath>

#include "quantize/algorithm.h"
#include "quantize/grid.h"
#include "quantize/reductions.h"

namespace whit {
namespace {

constexpr int kClipSteps = 10;      // ranges 1.00, 0.95 … 0.55 of the largest magnitude
constexpr float kSmallest = 1e-4f;  // of a channel's factor before normalisation

std::vector<Candidate> scale_candidates(const std::vector<float>& mean_abs,
                                        const ScalingGroup& group, int steps) {
  std::vector<Candidate> candidates;
  for (int step = 1; step <= steps; ++step) {
    const double r = static_cast<double>(step) / steps;
    std::vector<float> s(mean_abs.size());
    for (size_t i = 0; i < s.size(); ++i)
      s[i] = std::max(static_cast<float>(std::pow(static_cast<double>(mean_abs[i]), r)), kSmallest);
    share_factors(group, s);
    const auto [low, high] = std::minmax_element(s.begin(), s.end());
    const float norm = std::sqrt(*low * *high);
    for (float& value : s) value /= norm;
    candidates.push_back({r, std::move(s)});
  }
  return candidates;
}

// Bounds [N, G] of |w| that minimise each (row, group)'s own output error under `gram`.
Tensor search_clip(const Tensor& w, const Tensor& gram, const QuantArgs& args, Matmul& matmul,
                   int64_t& shrunk) {
  const int64_t n = w.dim(0), k = w.dim(1), size = args.group_size, groups = ceil_div(k, size);
  Tensor bounds(DType::kF32, {n, groups});
  Tensor delta(DType::kF32, {n, size}), product(DType::kF32, {n, size}),
      block(DType::kF32, {size, size});
  std::vector<double> best(n);
  std::vector<ValueRange> ranges(n);
  std::vector<int64_t> shrunk_rows(n, 0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * size, width = std::min(size, k - first);
    for (int64_t i = 0; i < width; ++i)
      std::copy_n(gram.data<float>() + (first + i) * k + first, width,
                  block.data<float>() + i * width);
    const cpu::PackedWeight packed = matmul.pack(block.data<float>(), width, width);
    for (int step = 0; step < kClipSteps; ++step) {
      const float share = 1.0f - 0.05f * static_cast<float>(step);
      matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const float* from = w.data<float>() + row * k + first;
          float* d = delta.data<float>() + row * width;
          if (step == 0) ranges[row] = value_range(from, width);
          const float bound = ranges[row].largest() * share;
          const Int4Params params = int4_params(std::max(ranges[row].low, -bound),
                                                std::min(ranges[row].high, bound), args.symmetric);
          const float inverse = 1.0f / params.scale;
          for (int64_t i = 0; i < width; ++i)
            d[i] = int4_round_trip(from[i], params, inverse) - from[i];
        }
      });
      matmul.multiply(delta.data<float>(), width, n, packed, product.data<float>(), width);
      matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const double error =
              dot(delta.data<float>() + row * width, product.data<float>() + row * width, width);
          if (step > 0 && !(error < best[row])) continue;
          float& bound = bounds.data<float>()[row * groups + g];
          if (step > 0 && bound >= ranges[row].largest()) ++shrunk_rows[row];
          best[row] = error;
          bound = ranges[row].largest() * share;
        }
      });
    }
  }
  shrunk = 0;
  for (const int64_t count : shrunk_rows) shrunk += count;
  return bounds;
}

// The same for scales of two levels, where a range is its group's multiple of the row's step: of
// each row the step, of the shares that are tried, and for it the multiples of least error. Groups
// keep their zero points.
Grid search_two_level(const Tensor& w, const Tensor& gram, const QuantArgs& args, Matmul& matmul,
                      int64_t& shrunk) {
  Grid grid(w, args);
  const int64_t n = grid.n, k = grid.k, size = grid.group;
  std::vector<TwoLevelRow> rows;
  for (int64_t row = 0; row < n; ++row) rows.emplace_back(w.data<float>() + row * k, grid);
  Tensor delta(DType::kF32, {n, size}), product(DType::kF32, {n, size}),
      block(DType::kF32, {size, size});
  std::vector<float> step(n), tried(n), scale(n * grid.groups);
  std::vector<double> best(n), total(n), least(n);
  for (const float share : kTwoLevelShares) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t row = 0; row < n; ++row) step[row] = two_level_step_above(rows[row].step * share);
    for (int64_t g = 0; g < grid.groups; ++g) {
      const int64_t first = g * size, width = std::min(size, k - first);
      for (int64_t i = 0; i < width; ++i)
        std::copy_n(gram.data<float>() + (first + i) * k + first, width,
                    block.data<float>() + i * width);
      const cpu::PackedWeight packed = matmul.pack(block.data<float>(), width, width);
      bool more = true;
      for (int below = 0; more; ++below) {
        matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const auto [smallest, largest] = rows[row].multiples(g, step[row]);
            const float* from = w.data<float>() + row * k + first;
            float* d = delta.data<float>() + row * width;
            tried[row] =
                largest - below < smallest ? 0 : static_cast<float>(largest - below) * step[row];
            const Int4Params params{tried[row], rows[row].whole[g].zero};
            const float inverse = 1.0f / params.scale;
            for (int64_t i = 0; i < width; ++i)
              d[i] = tried[row] == 0 ? 0 : int4_round_trip(from[i], params, inverse) - from[i];
          }
        });
        more = std::any_of(tried.begin(), tried.end(), [](float each) { return each > 0; });
        if (!more) break;
        matmul.multiply(delta.data<float>(), width, n, packed, product.data<float>(), width);
        matmul.pool().parallel_for(n, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            if (tried[row] == 0) continue;
            const double error =
                dot(delta.data<float>() + row * width, product.data<float>() + row * width, width);
            if (below > 0 && !(error < best[row])) continue;
            best[row] = error;
            scale[row * grid.groups + g] = tried[row];
          }
        });
      }
      for (int64_t row = 0; row < n; ++row) total[row] += best[row];
    }
    for (int64_t row = 0; row < n; ++row) {
      if (share != kTwoLevelShares[0] && !(total[row] < least[row])) continue;
      least[row] = total[row];
      grid.step[row] = step[row];
      for (int64_t at = row * grid.groups; at < (row + 1) * grid.groups; ++at) {
        grid.scale[at] = scale[at];
        grid.lowest[at] = -rows[row].whole[at % grid.groups].zero;
      }
    }
  }
  shrunk = 0;
  for (int64_t at = 0; at < n * grid.groups; ++at) {
    const TwoLevelRow& row = rows[at / grid.groups];
    shrunk += grid.scale[at] + grid.step[at / grid.groups] / 2 < row.whole[at % grid.groups].scale;
  }
  round_to_grid(w, matmul.pool(), grid);
  return grid;
}

Tensor values_of(const QuantizedTensor& weight, ThreadPool& pool) {
  Tensor values(DType::kF32, {weight.n, weight.k});
  pool.parallel_for(weight.n, [&](int64_t begin, int64_t end) {
    dequantize_rows(weight.view(), begin, end, values.data<float>() + begin * weight.k);
  });
  return values;
}

void clip_group(const LayerTask& task, const ScalingGroup& group, const LayerWeights& weights,
                LayerDecision& decision, GroupReport& report) {
  const auto applied = decision.applied.find(group.input);
  GroupTrial trial(task, group, weights,
                   applied == decision.applied.end() ? nullptr : applied->second.data());
  int64_t shrunk_total = 0, groups_total = 0;
  double error = 0;
  for (const NodeId id : group.linears) {
    const Tensor& w = weights.linears.at(id);
    const QuantArgs& args = *task.scheme.weights;
    const double plain = trial.squared_error(Split::kHeldOut, id, nullptr, nullptr);
    int64_t shrunk = 0;
    double clipped = 0;
    groups_total += w.dim(0) * ceil_div(w.dim(1), args.group_size);
    if (args.two_level) {
      QuantizedTensor rounded =
          pack(search_two_level(w, trial.gram(), args, task.matmul, shrunk), task.pool());
      Tensor values = values_of(rounded, task.pool());
      clipped = trial.rounded_error(Split::kHeldOut, id, nullptr, values);
      if (clipped < plain) decision.rounded[id] = std::move(rounded);
    } else {
      Tensor bounds = search_clip(w, trial.gram(), args, task.matmul, shrunk);
      clipped = trial.squared_error(Split::kHeldOut, id, nullptr, &bounds);
      if (clipped < plain) decision.clips[id] = std::move(bounds);
    }
    error += std::min(plain, clipped);
    if (clipped < plain) shrunk_total += shrunk;
  }
  report.clipped = static_cast<double>(shrunk_total) / static_cast<double>(groups_total);
  report.error = error / trial.energy(Split::kHeldOut);
}

}  // namespace

std::vector<Candidate> awq_candidates(const LayerTask& task, const ScalingGroup& group, int steps) {
  if (group.producer < 0) return {};
  const float* mean_abs = task.stats_of(group.input).mean_abs.data<float>();
  return scale_candidates({mean_abs, mean_abs + task.graph.value(group.input).width}, group, steps);
}

LayerDecision decide_awq(const LayerTask& task, LayerWeights& weights) {
  LayerDecision decision;
  const std::vector<ScalingGroup> groups = scaling_groups(task.graph, task.range);
  for (const ScalingGroup& group : groups) {
    GroupTrial trial(task, group, weights, nullptr);
    decision.reports.push_back(
        choose_and_fold(task, group, trial, awq_candidates(task, group), "awq", weights, decision));
    if (group.producer < 0)
      decision.reports.back().note = "nothing before it can absorb the factors";
  }
  // Ranges are taken of the weights as all folds left them.
  if (task.scheme.weights->num_bits == 4)
    for (size_t i = 0; i < groups.size(); ++i)
      clip_group(task, groups[i], weights, decision, decision.reports[i]);
  return decision;
}

}  // namespace whit
