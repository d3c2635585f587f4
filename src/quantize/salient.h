// The input channels of int4 linears that keep a bf16 weight beside the rounded one (Lin et al.,
// AWQ, MLSys 2024, §3.1: those of largest activations): Q(W − S) + S with S bf16 and zero outside
// of the C channels. A program gathers them and adds the small product to the large one.
#pragma once

#include "quantize/layer.h"

namespace whit {

struct SalientRequest {
  // Of the input channels of int4 groups, those of largest mean magnitude; 0: none.
  double share = 0;
  // kWherePaying: a group has them only where its held-out loss falls by least_salient_gain().
  enum class Groups { kAll, kWherePaying };
  Groups groups = Groups::kAll;

  bool decided_by_loss() const { return share > 0 && groups == Groups::kWherePaying; }
};

// The share that is tried where the user names none: half a percent, as in AWQ's comparison.
inline constexpr double kSalientShare = 0.005;

// How many channels of a linear with K = k keep a bf16 weight: at least one, 0 for a share of 0.
int64_t salient_count(const QuantScheme& scheme, double share, int64_t k);

// By how much `count` channels of k must lower the loss, as a share of it: 1 − 4^(−b), b = 16·C/K
// bits per weight. Each bit that is spent on a finer grid everywhere halves its step and so
// quarters the squared error; channels that give less are worse than the same bits there.
double least_salient_gain(int64_t count, int64_t k);

// The `count` channels of largest mean magnitude, ascending.
std::vector<int32_t> most_salient(const std::vector<float>& mean_abs, int64_t count);

// Moves channels of w [N, K] into a bf16 weight; what bf16 cannot hold stays.
QuantizedLayer::Salient take_salient(Tensor& w, const std::vector<int32_t>& channels);
// … and adds them to the values of what was left.
void add_salient(const QuantizedLayer::Salient& salient, Tensor& values);

}  // namespace whit
