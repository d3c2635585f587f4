// What a report shows of each scaling group beside its errors: the magnitudes of its input channels
// and the ranges of its weights, before and after factors were folded.
#pragma once

#include "quantize/algorithm.h"

namespace whit {

// [least, largest] of a weight.
std::pair<float, float> range_of(const Tensor& weight, ThreadPool& pool);

// One group, as JSON: name, layer, kind (its linears' own names), bits, activations {channels,
// before, after: largest |x| by channel, of at most kBins bins}, weights [{name, before, after}].
class GroupProfile {
 public:
  static constexpr int64_t kBins = 192;

  GroupProfile(const Graph& graph, const ScalingGroup& group);
  // `factors` [K] or null: by which the input was divided.
  void activations(const InputStats& stats, const float* factors);
  enum class When { kBefore, kAfter };
  void weight(NodeId linear, const Tensor& values, When when, ThreadPool& pool);
  void bits(const std::map<NodeId, QuantizedTensor>& rounded);
  Json json() const { return json_; }

 private:
  const Graph& graph_;
  const ScalingGroup& group_;
  Json json_;
};

// Of a layer that an algorithm has decided and not yet rounded; `bits` are still to come.
std::vector<GroupProfile> profile_layer(const LayerTask& task,
                                        const std::vector<ScalingGroup>& groups,
                                        const LayerWeights& original, const LayerWeights& folded,
                                        const LayerDecision& decision);

}  // namespace whit
