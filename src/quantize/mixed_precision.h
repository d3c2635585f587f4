// --scheme mixed: the sensitivity study, the search over it and the record of both.
#pragma once

#include "quantize/mixed.h"

namespace whit {

struct MixedRequest {
  MixedTarget target;
  int64_t tokens = 512;  // held-out, on which divergences are measured
  int64_t samples = 32;  // of the calibration data, for the rounding of the candidates
};

struct MixedDecision {
  SchemePlan schemes;
  Json record;  // target, chosen plan, Pareto front, what every group costs in every scheme
};

// `base` says whether activations are int8, and whether int4 weights are symmetric. `notice` is
// told, before the study begins, what it will measure and how long it will take. Throws
// kInvalidArgument where no plan is within the target.
MixedDecision decide_mixed(const Model& model, const CalibrationData& data,
                           const MixedRequest& request, const QuantScheme& base, cpu::Isa isa,
                           ThreadPool& pool, const std::function<void(const std::string&)>& notice);

// Throws kInvalidArgument for a target out of range, or none.
void check_mixed(const MixedRequest& request);

}  // namespace whit
