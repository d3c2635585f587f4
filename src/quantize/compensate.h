// Compensated rounding of a layer whose factors have been folded, and the searches and judgements
// that go with it.
#pragma once

#include <functional>

#include "quantize/algorithm.h"
#include "quantize/gptq.h"

namespace whit {

// Rounds every linear of `weights`, the folded form of `original`, by round_compensated under the
// statistics of its folded inputs and under the activations' rounding, into decision.rounded. A
// linear keeps what does best on held-out tokens: compensated and refined, compensated only, or
// rounded to nearest. decision.reports holds one report per scaling group, in their order; its
// error and note are brought up to date.
void compensate_layer(const LayerTask& task, const LayerWeights& original,
                      const LayerWeights& weights, LayerDecision& decision);

// The candidate that leaves the least error after compensation on the search split, if held-out
// tokens agree that it beats none at all and plain rounding; a note where it is not so. Sets the
// report's rtn_error and error to plain rounding's.
std::optional<Candidate> search_under_compensation(const LayerTask& task, const ScalingGroup& group,
                                                   const LayerWeights& weights, GroupTrial& trial,
                                                   std::vector<Candidate> candidates,
                                                   GroupReport& report);

// The rounding of w [N, K] that `error` of its values is least for: refined, compensated only, or
// to nearest. A note where it is not the first.
struct JudgedRounding {
  QuantizedTensor weight;
  double error;
};
JudgedRounding round_best(const LayerTask& task, const Tensor& w, const Hessian& hessian,
                          std::string_view name, const std::function<double(Tensor values)>& error,
                          GroupReport& report);

// E[x·xᵀ] of the trial's inputs after the factors (null: none).
Tensor folded_gram(const GroupTrial& trial, const float* s, ThreadPool& pool);

void add_note(GroupReport& report, std::string_view note);

}  // namespace whit
