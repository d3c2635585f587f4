#include "calibrate/cuda_group_errors.h"

#include <algorithm>

#include "kernels/cuda/calibration_ops.h"

namespace whit {
namespace {

// Columns of a product that are resident: few enough to skip nearly half of a symmetric matrix and
// to take little memory, enough to fill the GPU. A multiple of every group size.
constexpr int64_t kColumns = 2048;

cuda::CodeType code_type(NumberType type) {
  return type == NumberType::kFloat ? cuda::CodeType::kE4m3 : cuda::CodeType::kInt8;
}

class CudaGroupErrors : public GroupErrors {
 public:
  CudaGroupErrors(CudaMemory& memory, cuda::ProductF32& product, const GroupErrorsInput& input);

  void round(size_t linear, const float* s, const Tensor* clip) override;
  void take(size_t linear, Tensor& values) override {
    memory_.upload(candidate(), values.data<void>(), rows(linear) * k_ * 4);
  }
  double activation_error(Split split, size_t linear, const float* s, float static_scale) override;
  void measure_noise(int64_t rows, const float* s, float static_scale) override;
  double noise_error(size_t linear) override;
  void subtract(size_t linear, const float* s) override;
  double quadratic(Split split, size_t linear) override {
    return form(split, candidate(), rows(linear));
  }
  double energy(Split split, size_t linear) override {
    return form(split, weight(linear), rows(linear));
  }
  void set_columns(CholeskyColumns columns) override;
  double estimate(size_t linear) override;
  std::vector<float> max_abs_weight() override;
  Bounds search_bounds(size_t linear, std::span<const float> shares) override;
  TwoLevelScales search_two_level(size_t linear, std::span<const float> shares) override;
  const Tensor& gram() override;

 private:
  struct SplitData {
    cuda::DeviceBuffer gram, sample;
    int64_t sample_rows = 0;
  };

  SplitData& data(Split split) { return splits_[static_cast<int>(split)]; }
  int64_t rows(size_t linear) const { return input_.weights[linear]->dim(0); }
  float* weight(size_t linear) { return weights_[linear].as<float>(); }
  float* candidate() { return candidate_.as<float>(); }
  CUstream_st* stream() { return memory_.device().stream(); }
  // s [K] on the device; null for null.
  const float* factors(const float* s);
  void round_activations(Split split, int64_t rows, const float* s, float static_scale);
  double form(Split split, const float* d, int64_t n);
  // partials (+)= Σ a·b·weights
  void sum(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
           const float* by_column, int64_t t, int64_t k, bool accumulate);
  double total() { return memory_.sum(partials_.as<double>(), cuda::kSumPartials); }
  // block_ [N, columns] becomes the candidate's [N, columns] times each group's part of the search
  // split's Gram matrix, groups from column `first` on.
  void multiply_groups(int64_t n, int64_t first, int64_t columns);
  void search_columns(size_t linear, int64_t first, int64_t columns, float share, bool first_range,
                      double* best, float* bounds, float* largest);

  CudaMemory& memory_;
  cuda::ProductF32& product_;
  const cuda::CalibrationOps& ops_;
  GroupErrorsInput input_;
  int64_t k_, most_rows_ = 0, rank_ = 0;
  SplitData splits_[2];
  std::vector<cuda::DeviceBuffer> weights_;
  cuda::DeviceBuffer candidate_, block_, factors_, delta_, noise_, partials_, columns_, rest_;
  Tensor gram_;  // where inputs are divided
};

CudaGroupErrors::CudaGroupErrors(CudaMemory& memory, cuda::ProductF32& product,
                                 const GroupErrorsInput& input)
    : memory_(memory),
      product_(product),
      ops_(cuda::calibration_ops()),
      input_(input),
      k_(input.stats->k),
      factors_(memory.floats(k_, "factors")),
      delta_(memory.floats(Observer::kSampleRows * k_, "sampled inputs")),
      noise_(memory.floats(k_, "rounding noise")),
      partials_(memory.bytes(cuda::kSumPartials * 8, "sums")) {
  for (size_t i = 0; i < input.weights.size(); ++i) {
    most_rows_ = std::max(most_rows_, rows(i));
    weights_.push_back(memory.copy_of(input.weights[i]->f32(), "a group's weights"));
  }
  candidate_ = memory.floats(most_rows_ * k_, "a candidate of the search");
  block_ = memory.floats(std::max(most_rows_, Observer::kSampleRows) * std::min(kColumns, k_),
                         "products of the search");
  cuda::DeviceBuffer inverse;
  if (input.applied != nullptr) {
    std::vector<float> values(k_);
    for (int64_t i = 0; i < k_; ++i) values[i] = 1.0f / input.applied[i];
    inverse = memory.copy_of(values, "factors");
  }
  const SplitStats* sources[2] = {&input.stats->search, &input.stats->held_out};
  for (int which = 0; which < 2; ++which) {
    SplitData& split = splits_[which];
    const SplitStats& source = *sources[which];
    split.gram = memory.copy_of(source.gram.f32(), "Gram matrices");
    split.sample_rows = source.sample_rows;
    split.sample = memory.copy_of(
        source.sample.f32().first(static_cast<size_t>(source.sample_rows * k_)), "sampled inputs");
    if (input.applied == nullptr) continue;
    const auto* by = inverse.as<float>();
    ops_.scale(split.gram.as<float>(), by, by, k_, k_, stream());
    ops_.scale(split.sample.as<float>(), nullptr, by, split.sample_rows, k_, stream());
  }
  memory.device().wait();  // before `inverse` goes
}

const float* CudaGroupErrors::factors(const float* s) {
  if (s == nullptr) return nullptr;
  memory_.upload(factors_.as<void>(), s, k_ * 4);
  return factors_.as<float>();
}

void CudaGroupErrors::round(size_t linear, const float* s, const Tensor* clip) {
  cuda::DeviceBuffer bounds;
  if (clip != nullptr) bounds = memory_.copy_of(clip->f32(), "clipping bounds");
  ops_.round_trip({.w = weight(linear),
                   .n = rows(linear),
                   .k = k_,
                   .s = factors(s),
                   .clip = bounds.as<float>(),
                   .group_size = input_.args.num_bits == 4 ? input_.args.group_size : 0,
                   .symmetric = input_.args.symmetric,
                   .two_level = input_.args.two_level,
                   .codes = code_type(input_.args.type),
                   .out = candidate()},
                  stream());
  if (clip != nullptr) memory_.device().wait();  // before the bounds go
}

void CudaGroupErrors::round_activations(Split split, int64_t count, const float* s,
                                        float static_scale) {
  ops_.round_activations({.x = data(split).sample.as<float>(),
                          .s = factors(s),
                          .t = count,
                          .k = k_,
                          .static_scale = static_scale,
                          .codes = code_type(input_.activations),
                          .delta = delta_.as<float>()},
                         stream());
}

double CudaGroupErrors::activation_error(Split split, size_t linear, const float* s,
                                         float static_scale) {
  const int64_t count = data(split).sample_rows;
  if (count == 0) return 0;
  round_activations(split, count, s, static_scale);
  // In blocks of the linear's rows that the product's memory holds.
  const int64_t at_once = std::min(kColumns, k_);
  for (int64_t first = 0; first < rows(linear); first += at_once) {
    const int64_t n = std::min(at_once, rows(linear) - first);
    product_.run({.m = count,
                  .n = n,
                  .k = k_,
                  .x = delta_.as<float>(),
                  .x_stride = k_,
                  .w = candidate() + first * k_,
                  .w_stride = k_,
                  .y = block_.as<float>(),
                  .y_stride = n},
                 stream());
    sum(block_.as<float>(), n, block_.as<float>(), n, nullptr, count, n, first > 0);
  }
  return total() / static_cast<double>(count);
}

void CudaGroupErrors::measure_noise(int64_t count, const float* s, float static_scale) {
  round_activations(Split::kSearch, count, s, static_scale);
  ops_.mean_squares(delta_.as<float>(), count, k_, noise_.as<float>(), stream());
}

double CudaGroupErrors::noise_error(size_t linear) {
  sum(candidate(), k_, candidate(), k_, noise_.as<float>(), rows(linear), k_, false);
  return total();
}

void CudaGroupErrors::subtract(size_t linear, const float* s) {
  ops_.subtract(
      {.out = candidate(), .w = weight(linear), .s = factors(s), .n = rows(linear), .k = k_},
      stream());
}

double CudaGroupErrors::form(Split split, const float* d, int64_t n) {
  const float* gram = data(split).gram.as<float>();
  auto* block = block_.as<float>();
  for (int64_t first = 0; first < k_; first += kColumns) {
    // Of the symmetric matrix what is left of the block counts for what is above it too.
    const int64_t columns = std::min(kColumns, k_ - first);
    cuda::ProductArgs args{.m = n,
                           .n = columns,
                           .k = columns,
                           .x = d + first,
                           .x_stride = k_,
                           .w = gram + first * k_ + first,
                           .w_stride = k_,
                           .y = block,
                           .y_stride = columns};
    product_.run(args, stream());
    if (first > 0) {
      args.k = first;
      args.x = d;
      args.w = gram + first * k_;
      args.alpha = 2;
      args.beta = 1;
      product_.run(args, stream());
    }
    sum(d + first, k_, block, columns, nullptr, n, columns, first > 0);
  }
  return total();
}

void CudaGroupErrors::sum(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                          const float* by_column, int64_t t, int64_t k, bool accumulate) {
  ops_.sum_products({.a = a,
                     .a_stride = a_stride,
                     .b = b,
                     .b_stride = b_stride,
                     .weights = by_column,
                     .t = t,
                     .k = k,
                     .partials = partials_.as<double>(),
                     .accumulate = accumulate},
                    stream());
}

void CudaGroupErrors::set_columns(CholeskyColumns columns) {
  rank_ = columns.factor.dim(0);
  columns_ = memory_.copy_of(columns.factor.f32(), "columns of the Gram matrix");
  rest_ = memory_.copy_of(columns.rest, "columns of the Gram matrix");
}

double CudaGroupErrors::estimate(size_t linear) {
  const int64_t n = rows(linear);
  auto* block = block_.as<float>();
  product_.run({.m = n,
                .n = rank_,
                .k = k_,
                .x = candidate(),
                .x_stride = k_,
                .w = columns_.as<float>(),
                .w_stride = k_,
                .y = block,
                .y_stride = rank_},
               stream());
  sum(block, rank_, block, rank_, nullptr, n, rank_, false);
  sum(candidate(), k_, candidate(), k_, rest_.as<float>(), n, k_, true);
  return total();
}

std::vector<float> CudaGroupErrors::max_abs_weight() {
  const cuda::DeviceBuffer largest = memory_.zeros(k_, "statistics");
  const cuda::DeviceBuffer partials =
      memory_.floats(cuda::magnitudes_partials(most_rows_) * 2 * k_, "statistics");
  for (size_t i = 0; i < weights_.size(); ++i)
    ops_.magnitudes({.x = weight(i),
                     .t = rows(i),
                     .k = k_,
                     .partials = partials.as<float>(),
                     .sum = nullptr,
                     .largest = largest.as<float>()},
                    stream());
  std::vector<float> values(k_);
  memory_.download(values.data(), largest.as<void>(), k_ * 4);
  return values;
}

void CudaGroupErrors::multiply_groups(int64_t n, int64_t first, int64_t columns) {
  const int64_t size = input_.args.group_size;
  float *delta = candidate(), *product = block_.as<float>();
  // The whole groups in one batch; the last group of a row may be short.
  const float* gram = data(Split::kSearch).gram.as<float>() + first * k_ + first;
  const int64_t whole = columns / size, rest = columns % size;
  cuda::ProductArgs args{.m = n,
                         .n = size,
                         .k = size,
                         .x = delta,
                         .x_stride = columns,
                         .w = gram,
                         .w_stride = k_,
                         .y = product,
                         .y_stride = columns,
                         .batch = whole,
                         .x_step = size,
                         .w_step = size * k_ + size,
                         .y_step = size};
  if (whole > 0) product_.run(args, stream());
  if (rest > 0) {
    const int64_t at = whole * size;
    args.n = args.k = rest;
    args.x += at;
    args.w += at * k_ + at;
    args.y += at;
    args.batch = 1;
    args.x_step = args.w_step = args.y_step = 0;
    product_.run(args, stream());
  }
}

void CudaGroupErrors::search_columns(size_t linear, int64_t first, int64_t columns, float share,
                                     bool first_range, double* best, float* bounds,
                                     float* largest) {
  const int64_t n = rows(linear), size = input_.args.group_size;
  const float* w = weight(linear) + first;
  float *delta = candidate(), *product = block_.as<float>();
  ops_.clip({.w = w,
             .n = n,
             .k = k_,
             .columns = columns,
             .group_size = size,
             .symmetric = input_.args.symmetric,
             .share = share,
             .delta = delta},
            stream());
  multiply_groups(n, first, columns);
  ops_.clip_keep({.w = w,
                  .delta = delta,
                  .product = product,
                  .n = n,
                  .k = k_,
                  .columns = columns,
                  .group_size = size,
                  .at = first / size,
                  .groups = ceil_div(k_, size),
                  .share = share,
                  .first_range = first_range,
                  .best = best,
                  .bounds = bounds,
                  .largest = largest},
                 stream());
}

GroupErrors::Bounds CudaGroupErrors::search_bounds(size_t linear, std::span<const float> shares) {
  const int64_t n = rows(linear), groups = ceil_div(k_, input_.args.group_size);
  const cuda::DeviceBuffer best = memory_.bytes(n * groups * 8, "range search");
  const cuda::DeviceBuffer bounds = memory_.floats(n * groups, "range search");
  const cuda::DeviceBuffer largest = memory_.floats(n * groups, "range search");
  for (int64_t first = 0; first < k_; first += kColumns)
    for (size_t step = 0; step < shares.size(); ++step)
      search_columns(linear, first, std::min(kColumns, k_ - first), shares[step], step == 0,
                     best.as<double>(), bounds.as<float>(), largest.as<float>());
  Bounds found{Tensor(DType::kF32, {n, groups})};
  std::vector<float> whole(n * groups);
  memory_.download(found.values.data<void>(), bounds.as<void>(), n * groups * 4);
  memory_.download(whole.data(), largest.as<void>(), n * groups * 4);
  for (int64_t i = 0; i < n * groups; ++i)
    found.shrunk += found.values.data<float>()[i] < whole[i] ? 1 : 0;
  return found;
}

GroupErrors::TwoLevelScales CudaGroupErrors::search_two_level(size_t linear,
                                                              std::span<const float> shares) {
  // Multiples from the largest, at most 15, down to kLeastMultiple of it, both rounded outwards.
  constexpr int kMostTried = 10;
  const int64_t n = rows(linear), groups = ceil_div(k_, input_.args.group_size);
  std::vector<cuda::DeviceBuffer> memory;
  const auto floats = [&](int64_t count) {
    return memory.emplace_back(memory_.floats(count, "scale search")).as<float>();
  };
  const auto doubles = [&](int64_t count) {
    return memory.emplace_back(memory_.bytes(count * 8, "scale search")).as<double>();
  };
  const cuda::TwoLevelSearch search{.w = weight(linear),
                                    .n = n,
                                    .k = k_,
                                    .group_size = input_.args.group_size,
                                    .groups = groups,
                                    .symmetric = input_.args.symmetric,
                                    .whole = floats(n * groups),
                                    .zero = floats(n * groups),
                                    .least_step = floats(n),
                                    .step = floats(n),
                                    .scale = floats(n * groups),
                                    .best = doubles(n * groups),
                                    .least_cost = doubles(n),
                                    .kept_step = floats(n),
                                    .kept_scale = floats(n * groups)};
  ops_.two_level_begin(search, stream());
  for (size_t i = 0; i < shares.size(); ++i) {
    ops_.two_level_steps(search, shares[i], stream());
    for (int64_t first = 0; first < k_; first += kColumns)
      for (int below = 0; below < kMostTried; ++below) {
        const cuda::TwoLevelTryArgs args{.search = search,
                                         .first = first,
                                         .columns = std::min(kColumns, k_ - first),
                                         .below = below,
                                         .least_share = kLeastMultiple,
                                         .delta = candidate(),
                                         .product = block_.as<float>()};
        ops_.two_level_try(args, stream());
        multiply_groups(n, first, args.columns);
        ops_.two_level_keep(args, stream());
      }
    ops_.two_level_end(search, i == 0, stream());
  }
  TwoLevelScales found;
  const auto fetch = [&](const float* from, int64_t count) {
    std::vector<float> values(count);
    memory_.download(values.data(), from, count * 4);
    return values;
  };
  found.step = fetch(search.kept_step, n);
  found.scale = fetch(search.kept_scale, n * groups);
  found.lowest = fetch(search.zero, n * groups);
  const std::vector<float> whole = fetch(search.whole, n * groups);
  for (int64_t at = 0; at < n * groups; ++at) {
    found.lowest[at] = -found.lowest[at];
    found.shrunk += found.scale[at] + found.step[at / groups] / 2 < whole[at];
  }
  return found;
}

const Tensor& CudaGroupErrors::gram() {
  const Tensor& means = input_.stats->search.gram;
  if (input_.applied == nullptr) return means;
  if (gram_.empty()) {
    gram_ = Tensor(DType::kF32, means.shape());
    memory_.download(gram_.data<void>(), data(Split::kSearch).gram.as<void>(), k_ * k_ * 4);
  }
  return gram_;
}

}  // namespace

std::unique_ptr<GroupErrors> cuda_group_errors(CudaMemory& memory, cuda::ProductF32& product,
                                               const GroupErrorsInput& input) {
  return std::make_unique<CudaGroupErrors>(memory, product, input);
}

}  // namespace whit
