#include "quantize/cpu_group_errors.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "quantize/grid.h"
#include "quantize/quadratic_form.h"
#include "quantize/reductions.h"
#include "tensor/e4m3.h"

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
        const float scale = std::max(value_range(to, k).largest(), 1e-30f) / args.largest_code();
        const float inverse = 1.0f / scale;
        const bool integers = args.type == NumberType::kInt;
        for (int64_t i = 0; i < k; ++i) {
          const float code = to[i] * inverse;
          to[i] = (integers ? round_nearest(code) : round_to_e4m3(code)) * scale;
        }
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

namespace {

class CpuGroupErrors : public GroupErrors {
 public:
  CpuGroupErrors(const GroupErrorsInput& input, Matmul& matmul);

  void round(size_t linear, const float* s, const Tensor* clip) override;
  void take(size_t /*linear*/, Tensor& values) override { candidate_ = &values; }
  double activation_error(Split split, size_t linear, const float* s, float static_scale) override;
  void measure_noise(int64_t rows, const float* s, float static_scale) override;
  double noise_error(size_t linear) override;
  void subtract(size_t linear, const float* s) override;
  double quadratic(Split split, size_t /*linear*/) override {
    return form(split).total(*candidate_);
  }
  double energy(Split split, size_t linear) override { return form(split).total(weight(linear)); }
  void set_columns(CholeskyColumns columns) override {
    estimate_.emplace(std::move(columns), matmul_);
  }
  double estimate(size_t /*linear*/) override { return estimate_->total(*candidate_); }
  std::vector<float> max_abs_weight() override;
  Bounds search_bounds(size_t linear, std::span<const float> shares) override;
  TwoLevelScales search_two_level(size_t linear, std::span<const float> shares) override;
  const Tensor& gram() override { return splits_[0].gram; }

 private:
  struct SplitData {
    Tensor gram, sample;
    int64_t sample_rows = 0;
    std::optional<QuadraticForm> form;
  };

  SplitData& data(Split split) { return splits_[static_cast<int>(split)]; }
  const QuadraticForm& form(Split split);
  const Tensor& weight(size_t linear) const { return *input_.weights[linear]; }
  ThreadPool& pool() const { return matmul_.pool(); }
  // activation_delta_ becomes Q8(x/s) − x/s of the first `rows` sampled inputs.
  void round_activations(const SplitData& split, int64_t rows, const float* s, float static_scale);

  GroupErrorsInput input_;
  Matmul& matmul_;
  int64_t k_;
  SplitData splits_[2];
  std::optional<QuadraticEstimate> estimate_;
  std::map<size_t, Tensor> rounded_;  // memory of candidates, by linear
  Tensor* candidate_ = nullptr;
  Tensor activation_delta_, product_;
  std::vector<float> noise_;
};

CpuGroupErrors::CpuGroupErrors(const GroupErrorsInput& input, Matmul& matmul)
    : input_(input), matmul_(matmul), k_(input.stats->k) {
  const SplitStats* sources[2] = {&input.stats->search, &input.stats->held_out};
  std::vector<float> inverse(k_, 1.0f);
  if (input.applied != nullptr)
    for (int64_t i = 0; i < k_; ++i) inverse[i] = 1.0f / input.applied[i];
  for (int which = 0; which < 2; ++which) {
    SplitData& split = splits_[which];
    split.gram = sources[which]->gram.clone();
    split.sample = sources[which]->sample.clone();
    split.sample_rows = sources[which]->sample_rows;
    float* gram = split.gram.data<float>();
    float* sample = split.sample.data<float>();
    if (input.applied != nullptr)
      pool().parallel_for(k_, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          for (int64_t j = 0; j < k_; ++j) gram[i * k_ + j] *= inverse[i] * inverse[j];
        for (int64_t t = 0; t < split.sample_rows; ++t)
          for (int64_t i = begin; i < end; ++i) sample[t * k_ + i] *= inverse[i];
      });
  }
}

void CpuGroupErrors::round(size_t linear, const float* s, const Tensor* clip) {
  const Tensor& w = weight(linear);
  Tensor& rounded = rounded_[linear];
  if (rounded.empty()) rounded = Tensor(DType::kF32, w.shape());
  quantize_round_trip(w, s, clip, input_.args, pool(), rounded);
  candidate_ = &rounded;
}

void CpuGroupErrors::round_activations(const SplitData& split, int64_t rows, const float* s,
                                       float static_scale) {
  if (activation_delta_.empty())
    activation_delta_ = Tensor(DType::kF32, {Observer::kSampleRows, k_});
  const bool integers = input_.activations == NumberType::kInt;
  pool().parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = split.sample.data<float>() + t * k_;
      float* delta = activation_delta_.data<float>() + t * k_;
      float largest = 1e-9f;
      for (int64_t i = 0; i < k_; ++i) {
        delta[i] = s == nullptr ? x[i] : x[i] / s[i];
        largest = std::max(largest, std::fabs(delta[i]));
      }
      const float scale = static_scale > 0 ? static_scale
                                           : largest / (integers ? 127.0f : kE4m3Largest),
                  inverse = 1.0f / scale;
      for (int64_t i = 0; i < k_; ++i) {
        const float code = integers ? std::clamp(round_nearest(delta[i] * inverse), -127.0f, 127.0f)
                                    : round_to_e4m3(delta[i] * inverse);
        delta[i] = code * scale - delta[i];
      }
    }
  });
}

double CpuGroupErrors::activation_error(Split which, size_t /*linear*/, const float* s,
                                        float static_scale) {
  const SplitData& split = data(which);
  const Tensor& rounded = *candidate_;
  const int64_t rows = split.sample_rows, n = rounded.dim(0);
  if (rows == 0) return 0;
  round_activations(split, rows, s, static_scale);
  if (product_.empty() || product_.size() < rows * n) product_ = Tensor(DType::kF32, {rows, n});
  const cpu::PackedWeight packed = matmul_.pack(rounded.data<float>(), n, k_);
  matmul_.multiply(activation_delta_.data<float>(), k_, rows, packed, product_.data<float>(), n);
  std::vector<double> squares(rows);
  pool().parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* y = product_.data<float>() + t * n;
      squares[t] = dot(y, y, n);
    }
  });
  return std::accumulate(squares.begin(), squares.end(), 0.0) / static_cast<double>(rows);
}

void CpuGroupErrors::measure_noise(int64_t rows, const float* s, float static_scale) {
  noise_.assign(k_, 0.0f);
  round_activations(data(Split::kSearch), rows, s, static_scale);
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < k_; ++i) {
      const float delta = activation_delta_.data<float>()[t * k_ + i];
      noise_[i] += delta * delta / static_cast<float>(rows);
    }
}

double CpuGroupErrors::noise_error(size_t /*linear*/) {
  const Tensor& rounded = *candidate_;
  std::vector<double> by_row(rounded.dim(0));
  pool().parallel_for(rounded.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      by_row[row] = weighted_squares(rounded.data<float>() + row * k_, noise_.data(), k_);
  });
  return std::accumulate(by_row.begin(), by_row.end(), 0.0);
}

void CpuGroupErrors::subtract(size_t linear, const float* s) {
  Tensor& rounded = *candidate_;
  const float* w = weight(linear).data<float>();
  pool().parallel_for(rounded.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* r = rounded.data<float>() + row * k_;
      for (int64_t i = 0; i < k_; ++i) r[i] = (s == nullptr ? r[i] : r[i] / s[i]) - w[row * k_ + i];
    }
  });
}

const QuadraticForm& CpuGroupErrors::form(Split split) {
  SplitData& of = data(split);
  if (!of.form) of.form.emplace(of.gram, matmul_);
  return *of.form;
}

std::vector<float> CpuGroupErrors::max_abs_weight() {
  std::vector<float> largest(k_, 0.0f);
  for (const Tensor* w : input_.weights)
    pool().parallel_for(k_, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < w->dim(0); ++row)
        for (int64_t i = begin; i < end; ++i)
          largest[i] = std::max(largest[i], std::fabs(w->data<float>()[row * k_ + i]));
    });
  return largest;
}

GroupErrors::Bounds CpuGroupErrors::search_bounds(size_t linear, std::span<const float> shares) {
  const Tensor& w = weight(linear);
  const QuantArgs& args = input_.args;
  const int64_t n = w.dim(0), k = w.dim(1), size = args.group_size, groups = ceil_div(k, size);
  Bounds found{Tensor(DType::kF32, {n, groups})};
  Tensor delta(DType::kF32, {n, size}), product(DType::kF32, {n, size}),
      block(DType::kF32, {size, size});
  std::vector<double> best(n);
  std::vector<ValueRange> ranges(n);
  std::vector<int64_t> shrunk_rows(n, 0);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * size, width = std::min(size, k - first);
    for (int64_t i = 0; i < width; ++i)
      std::copy_n(gram().data<float>() + (first + i) * k + first, width,
                  block.data<float>() + i * width);
    const cpu::PackedWeight packed = matmul_.pack(block.data<float>(), width, width);
    for (size_t step = 0; step < shares.size(); ++step) {
      const float share = shares[step];
      pool().parallel_for(n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const float* from = w.data<float>() + row * k + first;
          float* d = delta.data<float>() + row * width;
          if (step == 0) ranges[row] = value_range(from, width);
          const float bound = ranges[row].largest() * share;
          const Int4Params params = int4_params(std::max(ranges[row].low, -bound),
                                                std::min(ranges[row].high, bound), args.symmetric);
          const float inverse = 1.0f / params.scale;
          for (int64_t i = 0; i < width; ++i)
            d[i] = int4_round_trip(from[i], params, inverse) - from[i];
        }
      });
      matmul_.multiply(delta.data<float>(), width, n, packed, product.data<float>(), width);
      pool().parallel_for(n, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const double error =
              dot(delta.data<float>() + row * width, product.data<float>() + row * width, width);
          if (step > 0 && !(error < best[row])) continue;
          float& bound = found.values.data<float>()[row * groups + g];
          if (step > 0 && bound >= ranges[row].largest()) ++shrunk_rows[row];
          best[row] = error;
          bound = ranges[row].largest() * share;
        }
      });
    }
  }
  for (const int64_t count : shrunk_rows) found.shrunk += count;
  return found;
}

GroupErrors::TwoLevelScales CpuGroupErrors::search_two_level(size_t linear,
                                                             std::span<const float> shares) {
  const Tensor& w = weight(linear);
  const Grid grid(w, input_.args, Grid::Codes::kNone);
  const int64_t n = grid.n, k = grid.k, size = grid.group;
  TwoLevelScales found;
  found.step.resize(n);
  found.scale.resize(n * grid.groups);
  found.lowest.resize(n * grid.groups);
  std::vector<TwoLevelRow> rows;
  for (int64_t row = 0; row < n; ++row) rows.emplace_back(w.data<float>() + row * k, grid);
  Tensor delta(DType::kF32, {n, size}), product(DType::kF32, {n, size}),
      block(DType::kF32, {size, size});
  std::vector<float> step(n), tried(n), scale(n * grid.groups);
  std::vector<double> best(n), total(n), least(n);
  for (const float share : shares) {
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t row = 0; row < n; ++row) step[row] = two_level_step_above(rows[row].step * share);
    for (int64_t g = 0; g < grid.groups; ++g) {
      const int64_t first = g * size, width = std::min(size, k - first);
      for (int64_t i = 0; i < width; ++i)
        std::copy_n(gram().data<float>() + (first + i) * k + first, width,
                    block.data<float>() + i * width);
      const cpu::PackedWeight packed = matmul_.pack(block.data<float>(), width, width);
      bool more = true;
      for (int below = 0; more; ++below) {
        pool().parallel_for(n, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            const auto [smallest, largest] = rows[row].multiples(g, step[row]);
            const float* from = w.data<float>() + row * k + first;
            float* d = delta.data<float>() + row * width;
            tried[row] =
                largest - below < smallest ? 0 : static_cast<float>(largest - below) * step[row];
            const Int4Params params{tried[row], rows[row].whole[g].zero};
            const float inverse = 1.0f / params.scale;
            for (int64_t i = 0; i < width; ++i)
              d[i] = tried[row] == 0 ? 0 : int4_round_trip(from[i], params, inverse) - from[i];
          }
        });
        more = std::any_of(tried.begin(), tried.end(), [](float each) { return each > 0; });
        if (!more) break;
        matmul_.multiply(delta.data<float>(), width, n, packed, product.data<float>(), width);
        pool().parallel_for(n, [&](int64_t begin, int64_t end) {
          for (int64_t row = begin; row < end; ++row) {
            if (tried[row] == 0) continue;
            const double error =
                dot(delta.data<float>() + row * width, product.data<float>() + row * width, width);
            if (below > 0 && !(error < best[row])) continue;
            best[row] = error;
            scale[row * grid.groups + g] = tried[row];
          }
        });
      }
      for (int64_t row = 0; row < n; ++row) total[row] += best[row];
    }
    for (int64_t row = 0; row < n; ++row) {
      if (share != shares[0] && !(total[row] < least[row])) continue;
      least[row] = total[row];
      found.step[row] = step[row];
      for (int64_t at = row * grid.groups; at < (row + 1) * grid.groups; ++at) {
        found.scale[at] = scale[at];
        found.lowest[at] = -rows[row].whole[at % grid.groups].zero;
      }
    }
  }
  for (int64_t at = 0; at < n * grid.groups; ++at) {
    const TwoLevelRow& row = rows[at / grid.groups];
    found.shrunk +=
        found.scale[at] + found.step[at / grid.groups] / 2 < row.whole[at % grid.groups].scale;
  }
  return found;
}

}  // namespace

std::unique_ptr<GroupErrors> cpu_group_errors(const GroupErrorsInput& input, Matmul& matmul) {
  return std::make_unique<CpuGroupErrors>(input, matmul);
}

}  // namespace whit
