// Mixed precision: a scheme for each scaling group, so that the sum of the groups' divergences is
// least under a budget. Groups whose linears share a kernel launch share a scheme, so that every
// plan can be run as it is.
//
// Per group only candidates on the lower convex hull of (cost, divergence) are of use; starting
// from the cheapest everywhere, the upgrade that removes most divergence per cost is made until
// nothing fits: the optimum of the problem with divisible upgrades, and within one upgrade of the
// best plan.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "quantize/sensitivity.h"

namespace whit {

struct MixedTarget {
  std::optional<double> bits_per_weight;  // of the decoder's linears, scales included, at most
  std::optional<double> ppl_increase;     // at most, as a share: 0.02 for 2 %; predicted
  std::optional<double> tokens_per_s;     // of decoding one sequence, at least; predicted
  bool any() const { return bits_per_weight || ppl_increase || tokens_per_s; }
};

// One plan of the Pareto front, with what is predicted for it.
struct MixedPlan {
  std::vector<int> choice;     // candidate of each group
  double bits_per_weight = 0;  // of the decoder's linears
  double kld = 0;              // Σ of the groups' contributions
  double tokens_per_s = 0;     // 0 where kernels were not timed
};

// Relative increase of PPL where the divergence is `kld`: on text that the model predicts well, the
// mean loss rises by the divergence itself.
double predicted_ppl_increase(double kld);

// Plans from the fewest bits to the most, each with the least divergence for its bits.
// `other_seconds`: of decoding one token, outside of the groups' products.
std::vector<MixedPlan> pareto_front(const std::vector<GroupSensitivity>& groups,
                                    double other_seconds);

// The plan of least divergence within the target; with a bound on PPL alone, the smallest within
// it. Throws kInvalidArgument, with what can be reached, where none is.
MixedPlan choose_plan(const std::vector<GroupSensitivity>& groups, const MixedTarget& target,
                      double other_seconds);

SchemePlan schemes_of(const std::vector<GroupSensitivity>& groups, const MixedPlan& plan);

}  // namespace whit
