// Round to nearest: the baseline that every other algorithm must beat.
#include "quantize/algorithm.h"

namespace whit {

LayerDecision decide_rtn(const LayerTask& task, LayerWeights& weights) {
  LayerDecision decision;
  if (task.stats.empty()) return decision;
  for (const ScalingGroup& group : scaling_groups(task.graph, task.range)) {
    GroupTrial trial(task, group, weights, nullptr);
    decision.reports.push_back(choose_and_fold(task, group, trial, {}, "rtn", weights, decision));
  }
  return decision;
}

}  // namespace whit
