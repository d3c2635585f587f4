// The loss of a candidate quantization of one scaling group, under the numerics that will run.
//
// For a linear y = W·x with candidate factors s, rounding Q and activations x̂:
//   weights       E‖(Q(W·s)/s − W)·x‖² over all tokens, exactly: tr(ΔW·E[x·xᵀ]·ΔWᵀ)
//   activations   E‖Q(W·s)·(Q8(x/s) − x/s)‖² over a sample of tokens, where activations are int8
// The two roundings are independent, so their squared errors add. A group's loss is the sum over
// its linears, divided by the sum of their outputs' energies tr(W·E[x·xᵀ]·Wᵀ): a linear counts as
// much as its output is large.
//
// estimate() ranks candidates at a fraction of the cost: the Gram matrix by QuadraticEstimate, and
// the int8 roundings of different channels as uncorrelated.
#pragma once

#include "quantize/layer.h"
#include "quantize/quadratic_form.h"
#include "quantize/rounding.h"

namespace whit {

class GroupTrial {
 public:
  // `weights` as they would be rounded without further scaling; `applied` [K], optional: factors
  // that have been folded into them already, by which the statistics' inputs are divided.
  GroupTrial(const LayerTask& task, const ScalingGroup& group, const LayerWeights& weights,
             const float* applied);

  // s [K] or null for ones. `clips` by linear, [N, G] bounds of |w|, or empty.
  double error(Split split, const float* s, const std::map<NodeId, Tensor>* clips = nullptr);
  // Of one linear alone, not divided by any energy.
  double squared_error(Split split, NodeId linear, const float* s, const Tensor* clip);
  // The same of the values [N, K] that W·s was rounded to; they are overwritten.
  double rounded_error(Split split, NodeId linear, const float* s, Tensor& rounded);
  // Nearly error(kSearch, s) times a constant.
  double estimate(const float* s);
  // Of the group's outputs.
  double energy(Split split);
  // The mean variance that rounding the activations to int8 adds to x/s; 0 for floating point.
  double activation_noise(const float* s) const;

  // Mean and largest magnitude of the input channels, after `applied`.
  const std::vector<float>& mean_abs() const { return mean_abs_; }
  const std::vector<float>& max_abs() const { return max_abs_; }
  // Largest |w| of each input channel over the group's linears.
  std::vector<float> max_abs_weight() const;
  // The per-tensor scale of static activations after s.
  float static_scale(const float* s) const;

  // gram of the search split, [K, K], after `applied`.
  const Tensor& gram() const { return splits_[0].gram; }
  int64_t k() const { return k_; }

 private:
  struct SplitData {
    Tensor gram, sample;
    int64_t sample_rows = 0;
    std::optional<QuadraticForm> form;
    std::optional<double> energy;
  };

  SplitData& data(Split split) { return splits_[static_cast<int>(split)]; }
  const QuadraticForm& form(Split split);
  // activation_delta_ becomes Q8(x/s) − x/s of the first `rows` sampled inputs.
  void round_activations(const SplitData& split, int64_t rows, const float* s);
  // Q(W·s)/s − W in place of Q(W·s).
  void subtract_weights(NodeId linear, const float* s, Tensor& rounded);
  Tensor& round_trip(NodeId linear, const float* s, const Tensor* clip);
  double activation_error(const SplitData& split, const Tensor& rounded, const float* s);

  const LayerTask& task_;
  const ScalingGroup& group_;
  const LayerWeights& weights_;
  int64_t k_;
  std::vector<float> mean_abs_, max_abs_;
  SplitData splits_[2];
  std::optional<QuadraticEstimate> estimate_;  // of the search split's gram
  std::map<NodeId, Tensor> rounded_;           // Q(W·s), then its error, of the last candidate
  Tensor activation_delta_, product_;
};

// W·s rounded to the scheme's weight format and back, [N, K]: row-parallel.
void quantize_round_trip(const Tensor& w, const float* s, const Tensor* clip, const QuantArgs& args,
                         ThreadPool& pool, Tensor& out);

}  // namespace whit
