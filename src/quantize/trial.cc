#include "quantize/trial.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "quantize/reductions.h"

namespace whit {

void quantize_round_trip(const Tensor& w, const float* s, const Tensor* clip, const QuantArgs& args,
                         ThreadPool& pool, Tensor& out) {
  const int64_t n = w.dim(0), k = w.dim(1);
  const int64_t groups = args.num_bits == 4 ? ceil_div(k, args.group_size) : 1;
  pool.parallel_for(n, [&](int64_t begin, int64_t end) {
    std::vector<Int4Params> params(groups);
    for (int64_t row = begin; row < end; ++row) {
      const float* from = w.data<float>() + row * k;
      float* to = out.data<float>() + row * k;
      for (int64_t i = 0; i < k; ++i) to[i] = s == nullptr ? from[i] : from[i] * s[i];
      if (args.num_bits != 4) {
        const float scale = std::max(value_range(to, k).largest(), 1e-30f) / 127.0f;
        const float inverse = 1.0f / scale;
        for (int64_t i = 0; i < k; ++i) to[i] = round_nearest(to[i] * inverse) * scale;
        continue;
      }
      const float* bounds = clip == nullptr ? nullptr : clip->data<float>() + row * groups;
      int4_row_params(clipped_ranges(to, k, args.group_size, bounds), args.symmetric,
                      args.two_level, params.data());
      for (int64_t g = 0; g < groups; ++g) {
        const float inverse = 1.0f / params[g].scale;
        const int64_t last = std::min(k, (g + 1) * args.group_size);
        for (int64_t i = g * args.group_size; i < last; ++i)
          to[i] = int4_round_trip(to[i], params[g], inverse);
      }
    }
  });
}

GroupTrial::GroupTrial(const LayerTask& task, const ScalingGroup& group,
                       const LayerWeights& weights, const float* applied)
    : task_(task), group_(group), weights_(weights), k_(task.graph.value(group.input).width) {
  const InputStats& stats = task.stats_of(group.input);
  std::vector<float> inverse(k_, 1.0f);
  for (int64_t i = 0; i < k_; ++i) {
    if (applied != nullptr) inverse[i] = 1.0f / applied[i];
    mean_abs_.push_back(stats.mean_abs.data<float>()[i] * inverse[i]);
    max_abs_.push_back(stats.max_abs.data<float>()[i] * inverse[i]);
  }
  const SplitStats* sources[2] = {&stats.search, &stats.held_out};
  for (int which = 0; which < 2; ++which) {
    SplitData& split = splits_[which];
    split.gram = sources[which]->gram.clone();
    split.sample = sources[which]->sample.clone();
    split.sample_rows = sources[which]->sample_rows;
    float* gram = split.gram.data<float>();
    float* sample = split.sample.data<float>();
    if (applied != nullptr)
      task.pool().parallel_for(k_, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < k_; ++j) gram[i * k_ + j] *= inverse[i] * inverse[j];
        for (int64_t t = 0; t < split.sample_rows; ++t)
          for (int64_t i = begin; i < end; ++i) sample[t * k_ + i] *= inverse[i];
      });
  }
}

std::vector<float> GroupTrial::max_abs_weight() const {
  std::vector<float> largest(k_, 0.0f);
  for (const NodeId id : group_.linears) {
    const Tensor& w = weights_.linears.at(id);
    task_.pool().parallel_for(k_, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < w.dim(0); ++row)
        for (int64_t i = begin; i < end; ++i)
          largest[i] = std::max(largest[i], std::fabs(w.data<float>()[row * k_ + i]));
    });
  }
  return largest;
}

float GroupTrial::static_scale(const float* s) const {
  float largest = 1e-9f;
  for (int64_t i = 0; i < k_; ++i)
    largest = std::max(largest, s == nullptr ? max_abs_[i] : max_abs_[i] / s[i]);
  return largest / 127.0f;
}

double GroupTrial::activation_noise(const float* s) const {
  if (!task_.scheme.int8_activations()) return 0;
  // A uniform error of one step.
  if (task_.scheme.static_activations()) {
    const double step = static_scale(s);
    return step * step / 12;
  }
  const SplitData& split = splits_[static_cast<int>(Split::kSearch)];
  double sum = 0;
  for (int64_t t = 0; t < split.sample_rows; ++t) {
    float largest = 0;
    for (int64_t i = 0; i < k_; ++i) {
      const float x = std::fabs(split.sample.data<float>()[t * k_ + i]);
      largest = std::max(largest, s == nullptr ? x : x / s[i]);
    }
    const double step = largest / 127.0;
    sum += step * step / 12;
  }
  return sum / static_cast<double>(std::max<int64_t>(1, split.sample_rows));
}

Tensor& GroupTrial::round_trip(NodeId linear, const float* s, const Tensor* clip) {
  const Tensor& w = weights_.linears.at(linear);
  Tensor& rounded = rounded_[linear];
  if (rounded.empty()) rounded = Tensor(DType::kF32, w.shape());
  quantize_round_trip(w, s, clip, *task_.scheme.weights, task_.pool(), rounded);
  return rounded;
}

void GroupTrial::round_activations(const SplitData& split, int64_t rows, const float* s) {
  if (activation_delta_.empty())
    activation_delta_ = Tensor(DType::kF32, {Observer::kSampleRows, k_});
  const float fixed = task_.scheme.static_activations() ? static_scale(s) : 0;
  task_.pool().parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = split.sample.data<float>() + t * k_;
      float* delta = activation_delta_.data<float>() + t * k_;
      float largest = 1e-9f;
      for (int64_t i = 0; i < k_; ++i) {
        delta[i] = s == nullptr ? x[i] : x[i] / s[i];
        largest = std::max(largest, std::fabs(delta[i]));
      }
      const float scale = fixed > 0 ? fixed : largest / 127.0f, inverse = 1.0f / scale;
      for (int64_t i = 0; i < k_; ++i) {
        const float code = std::clamp(round_nearest(delta[i] * inverse), -127.0f, 127.0f);
        delta[i] = code * scale - delta[i];
      }
    }
  });
}

double GroupTrial::activation_error(const SplitData& split, const Tensor& rounded, const float* s) {
  const int64_t rows = split.sample_rows, n = rounded.dim(0);
  if (rows == 0) return 0;
  round_activations(split, rows, s);
  if (product_.empty() || product_.size() < rows * n) product_ = Tensor(DType::kF32, {rows, n});
  const cpu::PackedWeight packed = task_.matmul.pack(rounded.data<float>(), n, k_);
  task_.matmul.multiply(activation_delta_.data<float>(), k_, rows, packed, product_.data<float>(),
                        n);
  std::vector<double> squares(rows);
  task_.pool().parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* y = product_.data<float>() + t * n;
      squares[t] = dot(y, y, n);
    }
  });
  return std::accumulate(squares.begin(), squares.end(), 0.0) / static_cast<double>(rows);
}

const QuadraticForm& GroupTrial::form(Split split) {
  SplitData& of = data(split);
  if (!of.form) of.form.emplace(of.gram, task_.matmul);
  return *of.form;
}

double GroupTrial::energy(Split split) {
  SplitData& of = data(split);
  if (!of.energy) {
    double energy = 0;
    for (const NodeId id : group_.linears) energy += form(split).total(weights_.linears.at(id));
    of.energy = std::max(energy, 1e-30);
  }
  return *of.energy;
}

void GroupTrial::subtract_weights(NodeId linear, const float* s, Tensor& rounded) {
  const float* w = weights_.linears.at(linear).data<float>();
  task_.pool().parallel_for(rounded.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* r = rounded.data<float>() + row * k_;
      for (int64_t i = 0; i < k_; ++i) r[i] = (s == nullptr ? r[i] : r[i] / s[i]) - w[row * k_ + i];
    }
  });
}

double GroupTrial::squared_error(Split which, NodeId linear, const float* s, const Tensor* clip) {
  return rounded_error(which, linear, s, round_trip(linear, s, clip));
}

double GroupTrial::rounded_error(Split which, NodeId linear, const float* s, Tensor& rounded) {
  const double activations =
      task_.scheme.int8_activations() ? activation_error(data(which), rounded, s) : 0;
  subtract_weights(linear, s, rounded);
  return activations + form(which).total(rounded);
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
  const SplitData& split = data(Split::kSearch);
  if (!estimate_) estimate_.emplace(split.gram, task_.matmul);
  const int64_t rows = task_.scheme.int8_activations() ? std::min(kRows, split.sample_rows) : 0;
  std::vector<float> noise(k_, 0.0f);  // E[(Q8(x/s) − x/s)²] by channel
  if (rows > 0) {
    round_activations(split, rows, s);
    for (int64_t t = 0; t < rows; ++t)
      for (int64_t i = 0; i < k_; ++i) {
        const float delta = activation_delta_.data<float>()[t * k_ + i];
        noise[i] += delta * delta / static_cast<float>(rows);
      }
  }
  double error = 0;
  for (const NodeId id : group_.linears) {
    Tensor& rounded = round_trip(id, s, nullptr);
    if (rows > 0) {
      std::vector<double> by_row(rounded.dim(0));
      task_.pool().parallel_for(rounded.dim(0), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
          by_row[row] = weighted_squares(rounded.data<float>() + row * k_, noise.data(), k_);
      });
      error = std::accumulate(by_row.begin(), by_row.end(), error);
    }
    subtract_weights(id, s, rounded);
    error += estimate_->total(rounded);
  }
  return error;
}

}  // namespace whit
