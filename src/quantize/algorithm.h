// The table of quantization algorithms: each decides factors (folded into the layer) and ranges;
// rounding is common.
#pragma once

#include <span>
#include <string_view>

#include "quantize/layer.h"
#include "quantize/trial.h"

namespace whit {

struct LayerDecision {
  std::map<NodeId, Tensor> clips;                 // [N, G] by linear, where a range was shrunk
  std::map<ValueId, std::vector<float>> applied;  // factors folded into the readers of a value
  std::map<NodeId, QuantizedTensor> rounded;      // linears that need no further rounding
  std::vector<GroupReport> reports;
};

struct Algorithm {
  std::string_view name;  // "awq", …: the --mode
  bool needs_calibration;
  // Why a scheme makes no sense with it; empty where it does.
  std::string (*refuses)(const QuantScheme& scheme);
  // Folds factors into `weights` and returns what rounding needs. Null for the paired composition
  // (quantize/sequential.h), which goes through the model on its own.
  LayerDecision (*decide)(const LayerTask& task, LayerWeights& weights);
};

std::span<const Algorithm> algorithms();
const Algorithm& find_algorithm(
    std::string_view name);  // throws kInvalidArgument with the possible names

// quantize/rtn.cc, awq.cc, smoothquant.cc, compensate.cc
LayerDecision decide_rtn(const LayerTask& task, LayerWeights& weights);
LayerDecision decide_awq(const LayerTask& task, LayerWeights& weights);
LayerDecision decide_smoothquant(const LayerTask& task, LayerWeights& weights);
LayerDecision decide_gptq(const LayerTask& task, LayerWeights& weights);
LayerDecision decide_awq_gptq(const LayerTask& task, LayerWeights& weights);
LayerDecision decide_smoothquant_gptq(const LayerTask& task, LayerWeights& weights);

// A candidate of a factor search.
struct Candidate {
  double exponent;
  std::vector<float> factors;  // [K]
};
// The factors that AWQ's scale search tries for a group: exponents 1/steps … 1.
std::vector<Candidate> awq_candidates(const LayerTask& task, const ScalingGroup& group,
                                      int steps = 20);
// … and those of SmoothQuant's.
std::vector<Candidate> smoothquant_candidates(const LayerTask& task, const ScalingGroup& group,
                                              const GroupTrial& trial);

// Rounds the folded weights to the scheme with the decision's ranges, where the decision has not
// rounded them (those are moved out of it), and takes static activation scales.
QuantizedLayer round_layer(const LayerTask& task, LayerWeights weights, LayerDecision& decision);

// Tries the most promising candidates on the search split, keeps the best if held-out tokens agree
// that it beats plain rounding, folds it, and reports. Candidates must leave shared factors (GQA)
// equal; `share_factors` makes them so.
GroupReport choose_and_fold(const LayerTask& task, const ScalingGroup& group, GroupTrial& trial,
                            std::span<const Candidate> candidates, std::string_view algorithm,
                            LayerWeights& weights, LayerDecision& decision);
// The `count` most promising candidates by the trial's estimate; all of them where there are fewer.
std::vector<const Candidate*> shortlist(GroupTrial& trial, std::span<const Candidate> candidates,
                                        size_t count);
void share_factors(const ScalingGroup& group, std::vector<float>& factors);
std::string group_name(const Graph& graph, const ScalingGroup& group);

}  // namespace whit
