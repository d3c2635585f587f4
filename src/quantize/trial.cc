#include "quantize/trial.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace whit {

WeightFormat weight_format(const QuantScheme& scheme) {
  if (!scheme.weights) return WeightFormat::kBF16;
  return scheme.weights->num_bits == 4 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel;
}

void quantize_round_trip(const Tensor& w, const float* s, const Tensor* clip, const QuantArgs& args,
                         ThreadPool& pool, Tensor& out) {
  const int64_t n = w.dim(0), k = w.dim(1);
  const int64_t group = args.num_bits == 4 ? args.group_size : k, groups = ceil_div(k, group);
  pool.parallel_for(n, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = w.data<float>() + row * k;
      float* to = out.data<float>() + row * k;
      for (int64_t i = 0; i < k; ++i) to[i] = s == nullptr ? from[i] : from[i] * s[i];
      for (int64_t g = 0; g < groups; ++g) {
        float* first = to + g * group;
        const int64_t count = std::min(group, k - g * group);
        float low = first[0], high = first[0];
        for (int64_t i = 1; i < count; ++i) {
          low = std::min(low, first[i]);
          high = std::max(high, first[i]);
        }
        if (args.num_bits == 4) {
          if (clip != nullptr) {
            const float bound = clip->data<float>()[row * groups + g];
            low = std::max(low, -bound);
            high = std::min(high, bound);
          }
          const Int4Params params = int4_params(low, high, args.symmetric);
          const float inverse = 1.0f / params.scale;
          for (int64_t i = 0; i < count; ++i) first[i] = int4_round_trip(first[i], params, inverse);
        } else {
          const float scale = std::max({-low, high, 1e-30f}) / 127.0f, inverse = 1.0f / scale;
          for (int64_t i = 0; i < count; ++i) first[i] = round_nearest(first[i] * inverse) * scale;
        }
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
    split.packed_gram = task.matmul.pack(gram, k_, k_);
    for (const NodeId id : group.linears) {
      double energy = 0;
      for (const double row : row_errors(weights.linears.at(id), split.packed_gram, task.matmul))
        energy += row;
      split.energy[id] = std::max(energy, 1e-30);
    }
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

void GroupTrial::round_trip(NodeId linear, const float* s, const Tensor* clip, Tensor& rounded) {
  const Tensor& w = weights_.linears.at(linear);
  if (rounded.empty() || rounded.shape() != w.shape()) rounded = Tensor(DType::kF32, w.shape());
  quantize_round_trip(w, s, clip, *task_.scheme.weights, task_.pool(), rounded);
}

double GroupTrial::activation_error(SplitData& split, const Tensor& rounded, const float* s) {
  const int64_t rows = split.sample_rows, n = rounded.dim(0);
  if (rows == 0) return 0;
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

double GroupTrial::linear_error(Split which, NodeId linear, const float* s, const Tensor* clip) {
  return squared_error(which, linear, s, clip) / splits_[static_cast<int>(which)].energy.at(linear);
}

double GroupTrial::squared_error(Split which, NodeId linear, const float* s, const Tensor* clip) {
  SplitData& split = splits_[static_cast<int>(which)];
  Tensor rounded;
  round_trip(linear, s, clip, rounded);
  double error = task_.scheme.int8_activations() ? activation_error(split, rounded, s) : 0;
  const float* w = weights_.linears.at(linear).data<float>();
  task_.pool().parallel_for(rounded.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* r = rounded.data<float>() + row * k_;
      for (int64_t i = 0; i < k_; ++i) r[i] = (s == nullptr ? r[i] : r[i] / s[i]) - w[row * k_ + i];
    }
  });
  for (const double row : row_errors(rounded, split.packed_gram, task_.matmul)) error += row;
  return error;
}

double GroupTrial::error(Split which, const float* s, const std::map<NodeId, Tensor>* clips) {
  double error = 0, energy = 0;
  for (const NodeId id : group_.linears) {
    const Tensor* clip = nullptr;
    if (clips != nullptr && clips->contains(id)) clip = &clips->at(id);
    error += squared_error(which, id, s, clip);
    energy += splits_[static_cast<int>(which)].energy.at(id);
  }
  return error / energy;
}

}  // namespace whit
