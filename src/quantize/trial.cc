#include "quantize/trial.h"

#include <algorithm>
#include <cmath>

#include "ops/reference/quantize.h"
#include "quantize/cpu_group_errors.h"

namespace whit {
namespace {

std::unique_ptr<GroupErrors> errors_of(const LayerTask& task, const GroupErrorsInput& input) {
  return task.accelerator != nullptr ? task.accelerator->group_errors(input)
                                     : cpu_group_errors(input, task.matmul);
}

}  // namespace

GroupTrial::GroupTrial(const LayerTask& task, const ScalingGroup& group,
                       const LayerWeights& weights, const float* applied)
    : task_(task),
      group_(group),
      stats_(task.stats_of(group.input)),
      k_(task.graph.value(group.input).width),
      inverse_(k_, 1.0f) {
  for (int64_t i = 0; i < k_; ++i) {
    if (applied != nullptr) inverse_[i] = 1.0f / applied[i];
    mean_abs_.push_back(stats_.mean_abs.data<float>()[i] * inverse_[i]);
    max_abs_.push_back(stats_.max_abs.data<float>()[i] * inverse_[i]);
  }
  GroupErrorsInput input{.stats = &stats_, .applied = applied, .args = *task.scheme.weights};
  if (task.scheme.quantizes_activations()) input.activations = task.scheme.input_activations->type;
  for (const NodeId id : group.linears) input.weights.push_back(&weights.linears.at(id));
  errors_ = errors_of(task, input);
}

size_t GroupTrial::index_of(NodeId linear) const {
  return std::find(group_.linears.begin(), group_.linears.end(), linear) - group_.linears.begin();
}

float GroupTrial::static_scale(const float* s) const {
  float largest = 1e-9f;
  for (int64_t i = 0; i < k_; ++i)
    largest = std::max(largest, s == nullptr ? max_abs_[i] : max_abs_[i] / s[i]);
  return largest / task_.scheme.input_activations->largest_code();
}

float GroupTrial::fixed_scale(const float* s) const {
  return task_.scheme.static_activations() ? static_scale(s) : 0;
}

double GroupTrial::activation_noise(const float* s) const {
  if (!task_.scheme.quantizes_activations()) return 0;
  const bool integers = task_.scheme.input_activations->type == NumberType::kInt;
  // A uniform error of one step.
  if (task_.scheme.static_activations() && integers) {
    const double step = static_scale(s);
    return step * step / 12;
  }
  const SplitStats& split = stats_.search;
  double sum = 0;
  if (!integers) {
    // Steps grow with the values: what they are, on average over the channels.
    std::vector<float> row(k_), rounded(k_);
    for (int64_t t = 0; t < split.sample_rows; ++t) {
      for (int64_t i = 0; i < k_; ++i) {
        const float x = split.sample.data<float>()[t * k_ + i] * inverse_[i];
        row[i] = s == nullptr ? x : x / s[i];
      }
      reference::round_row_to_fp8(row.data(), k_, fixed_scale(s), rounded.data());
      double squares = 0;
      for (int64_t i = 0; i < k_; ++i) squares += std::pow(double{rounded[i]} - row[i], 2.0);
      sum += squares / static_cast<double>(k_);
    }
    return sum / static_cast<double>(std::max<int64_t>(1, split.sample_rows));
  }
  for (int64_t t = 0; t < split.sample_rows; ++t) {
    float largest = 0;
    for (int64_t i = 0; i < k_; ++i) {
      const float x = std::fabs(split.sample.data<float>()[t * k_ + i] * inverse_[i]);
      largest = std::max(largest, s == nullptr ? x : x / s[i]);
    }
    const double step = largest / 127.0;
    sum += step * step / 12;
  }
  return sum / static_cast<double>(std::max<int64_t>(1, split.sample_rows));
}

double GroupTrial::energy(Split split) {
  std::optional<double>& known = energy_[static_cast<int>(split)];
  if (!known) {
    double energy = 0;
    for (size_t i = 0; i < group_.linears.size(); ++i) energy += errors_->energy(split, i);
    known = std::max(energy, 1e-30);
  }
  return *known;
}

double GroupTrial::squared_error(Split which, NodeId linear, const float* s, const Tensor* clip) {
  errors_->round(index_of(linear), s, clip);
  return candidate_error(which, index_of(linear), s);
}

double GroupTrial::rounded_error(Split which, NodeId linear, const float* s, Tensor& rounded) {
  errors_->take(index_of(linear), rounded);
  return candidate_error(which, index_of(linear), s);
}

double GroupTrial::candidate_error(Split which, size_t linear, const float* s) {
  const double activations = task_.scheme.quantizes_activations()
                                 ? errors_->activation_error(which, linear, s, fixed_scale(s))
                                 : 0;
  errors_->subtract(linear, s);
  return activations + errors_->quadratic(which, linear);
}

double GroupTrial::error(Split which, const float* s, const std::map<NodeId, Tensor>* clips) {
  double error = 0;
  for (const NodeId id : group_.linears) {
    const Tensor* clip = nullptr;
    if (clips != nullptr && clips->contains(id)) clip = &clips->at(id);
    error += squared_error(which, id, s, clip);
  }
  return error / energy(which);
}

double GroupTrial::estimate(const float* s) {
  constexpr int64_t kRows = 128;  // of sampled inputs: their mean square has 1/√(2·128) of error
  if (!has_columns_) errors_->set_columns(cholesky_columns(gram()));
  has_columns_ = true;
  const int64_t rows =
      task_.scheme.quantizes_activations() ? std::min(kRows, stats_.search.sample_rows) : 0;
  if (rows > 0) errors_->measure_noise(rows, s, fixed_scale(s));
  double error = 0;
  for (size_t i = 0; i < group_.linears.size(); ++i) {
    errors_->round(i, s, nullptr);
    if (rows > 0) error += errors_->noise_error(i);
    errors_->subtract(i, s);
    error += errors_->estimate(i);
  }
  return error;
}

}  // namespace whit
