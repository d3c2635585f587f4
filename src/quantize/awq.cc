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

// Shares 1.00, 0.95 … 0.55 of a group's largest magnitude that clipping tries.
std::vector<float> clip_shares() {
  std::vector<float> shares;
  for (int step = 0; step < 10; ++step) shares.push_back(1.0f - 0.05f * static_cast<float>(step));
  return shares;
}

// W on the grid of searched two-level scales.
QuantizedTensor round_two_level(const Tensor& w, const QuantArgs& args,
                                GroupErrors::TwoLevelScales scales, ThreadPool& pool) {
  Grid grid(w, args);
  grid.step = std::move(scales.step);
  grid.scale = std::move(scales.scale);
  grid.lowest = std::move(scales.lowest);
  round_to_grid(w, pool, grid);
  return pack(grid, pool);
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
      GroupErrors::TwoLevelScales scales = trial.search_two_level(id, kTwoLevelShares);
      shrunk = scales.shrunk;
      QuantizedTensor rounded = round_two_level(w, args, std::move(scales), task.pool());
      Tensor values = values_of(rounded, task.pool());
      clipped = trial.rounded_error(Split::kHeldOut, id, nullptr, values);
      if (clipped < plain) decision.rounded[id] = std::move(rounded);
    } else {
      GroupErrors::Bounds bounds = trial.search_bounds(id, clip_shares());
      shrunk = bounds.shrunk;
      clipped = trial.squared_error(Split::kHeldOut, id, nullptr, &bounds.values);
      if (clipped < plain) decision.clips[id] = std::move(bounds.values);
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
