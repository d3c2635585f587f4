// SmoothQuant (Xiao et al., ICML 2023): activation outliers are divided out of the inputs and
// multiplied into the weights.
//   s_j = max|X_j|^α / max|W_j|^(1−α)    (eq. 4 there)
// W's maximum is taken over all linears that read the input. α is chosen per scaling group by the
// output error under int8 weights and int8 activations, on held-out tokens; every producer that can
// absorb 1/s takes part: norms, up_proj through SiLU·mul, v_proj through attention. Cost: 4
// forwards of 512 sampled rows and 5 products with the gram matrix per group, and 7 estimates.
#include <algorithm>
#include <cmath>

#include "quantize/algorithm.h"

namespace whit {
namespace {

constexpr float kSmallest = 1e-5f;  // both maxima are clamped to this, as in the authors' code

std::vector<float> smoothing_factors(const std::vector<float>& x, const std::vector<float>& w,
                                     double alpha) {
  std::vector<float> s(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double magnitude = std::max(x[i], kSmallest), weight = std::max(w[i], kSmallest);
    s[i] = std::max(static_cast<float>(std::pow(magnitude, alpha) / std::pow(weight, 1.0 - alpha)),
                    kSmallest);
  }
  return s;
}

}  // namespace

std::vector<Candidate> smoothquant_candidates(const LayerTask& task, const ScalingGroup& group,
                                              const GroupTrial& trial) {
  std::vector<Candidate> candidates;
  if (group.producer < 0) return candidates;
  const std::vector<float> w = trial.max_abs_weight();
  const auto add = [&](double alpha) {
    candidates.push_back({alpha, smoothing_factors(trial.max_abs(), w, alpha)});
    share_factors(group, candidates.back().factors);
  };
  if (task.fixed_alpha)
    add(*task.fixed_alpha);
  else
    for (int step = 3; step <= 9; ++step) add(step * 0.1);
  return candidates;
}

LayerDecision decide_smoothquant(const LayerTask& task, LayerWeights& weights) {
  LayerDecision decision;
  for (const ScalingGroup& group : scaling_groups(task.graph, task.range)) {
    GroupTrial trial(task, group, weights, nullptr);
    GroupReport report =
        choose_and_fold(task, group, trial, smoothquant_candidates(task, group, trial),
                        "smoothquant", weights, decision);
    if (group.producer < 0) report.note = "nothing before it can absorb the factors";
    decision.reports.push_back(std::move(report));
  }
  return decision;
}

}  // namespace whit
