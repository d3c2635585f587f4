// AWQ, activation-aware weight quantization (Lin et al., MLSys 2024).
//   Scale search (§3.2 there): s = mean|x|^r, r ∈ {0, 1/20 … 1}, normalised by √(max s · min s);
//   the r is kept that minimises E‖Q(W·s)·(x/s) − W·x‖², with x/s in int8 where the scheme says so.
//   r = 0 is plain rounding and always a candidate. Clipping search: per row and group, the range
//   is shrunk to the share of its largest magnitude that minimises the group's own output error
//   d·E[x_g·x_gᵀ]·dᵀ; a linear keeps its clipping only where its whole output error on held-out
//   tokens falls.
// Scaling groups are the graph's: norm→q/k/v, v→o (factors shared by the query heads of a kv head),
// norm→gate/up, up→down. Cost per layer and group: 8 products [N, K]·[K, K], half of each
// left out by symmetry, 21 estimates, and 10 products of width G.
#include <algorithm>
#include <cmath>

#include "quantize/algorithm.h"
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

void clip_group(const LayerTask& task, const ScalingGroup& group, const LayerWeights& weights,
                LayerDecision& decision, GroupReport& report) {
  const auto applied = decision.applied.find(group.input);
  GroupTrial trial(task, group, weights,
                   applied == decision.applied.end() ? nullptr : applied->second.data());
  int64_t shrunk_total = 0, groups_total = 0;
  double error = 0;
  for (const NodeId id : group.linears) {
    const Tensor& w = weights.linears.at(id);
    int64_t shrunk = 0;
    Tensor bounds = search_clip(w, trial.gram(), *task.scheme.weights, task.matmul, shrunk);
    const double plain = trial.squared_error(Split::kHeldOut, id, nullptr, nullptr);
    const double clipped = trial.squared_error(Split::kHeldOut, id, nullptr, &bounds);
    error += std::min(plain, clipped);
    groups_total += bounds.size();
    if (clipped < plain) {
      shrunk_total += shrunk;
      decision.clips[id] = std::move(bounds);
    }
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
