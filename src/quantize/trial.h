// The loss of a candidate quantization of one scaling group, under the numerics that will run.
//
// For a linear y = W·x with candidate factors s, rounding Q and activations x̂:
//   weights       E‖(Q(W·s)/s − W)·x‖² over all tokens, exactly: tr(ΔW·E[x·xᵀ]·ΔWᵀ)
//   activations   E‖Q(W·s)·(Q8(x/s) − x/s)‖² over a sample of tokens, where activations have 8 bits
// The two roundings are independent, so their squared errors add. A group's loss is the sum over
// its linears, divided by the sum of their outputs' energies tr(W·E[x·xᵀ]·Wᵀ): a linear counts as
// much as its output is large.
//
// The sums are GroupErrors' (calibrate/accelerator.h), on the CPU or a GPU.
//
// estimate() ranks candidates at a fraction of the cost: the Gram matrix by its leading columns,
// and the roundings of different channels as uncorrelated.
#pragma once

#include "calibrate/accelerator.h"
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
  // The mean variance that rounding the activations to 8 bits adds to x/s; 0 where they are not.
  double activation_noise(const float* s) const;

  // Mean and largest magnitude of the input channels, after `applied`.
  const std::vector<float>& mean_abs() const { return mean_abs_; }
  const std::vector<float>& max_abs() const { return max_abs_; }
  // Largest |w| of each input channel over the group's linears.
  std::vector<float> max_abs_weight() const { return errors_->max_abs_weight(); }
  // GroupErrors' searches.
  GroupErrors::Bounds search_bounds(NodeId linear, std::span<const float> shares) {
    return errors_->search_bounds(index_of(linear), shares);
  }
  GroupErrors::TwoLevelScales search_two_level(NodeId linear, std::span<const float> shares) {
    return errors_->search_two_level(index_of(linear), shares);
  }
  // The per-tensor scale of static activations after s.
  float static_scale(const float* s) const;

  // gram of the search split, [K, K], after `applied`.
  const Tensor& gram() const { return errors_->gram(); }
  int64_t k() const { return k_; }

 private:
  size_t index_of(NodeId linear) const;
  // static_scale(s) where the scheme is of static activations, else 0.
  float fixed_scale(const float* s) const;
  // Of what round() or take() has made of a linear.
  double candidate_error(Split split, size_t linear, const float* s);

  const LayerTask& task_;
  const ScalingGroup& group_;
  const InputStats& stats_;
  int64_t k_;
  std::vector<float> inverse_, mean_abs_, max_abs_;
  std::unique_ptr<GroupErrors> errors_;
  std::optional<double> energy_[2];
  bool has_columns_ = false;
};

}  // namespace whit
