#include "calibrate/observer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace whit {
namespace {

// The gram matrix is symmetric: its columns are computed in this many blocks, and of each row block
// only those right of the diagonal.
constexpr int64_t kBlocks = 4;

}  // namespace

Observer::Observer(const Graph& graph, std::span<const ScalingGroup> groups,
                   int64_t expected_search_rows, int64_t expected_held_out_rows, Matmul& matmul,
                   int64_t gram_tokens_per_channel)
    : matmul_(matmul),
      expected_{expected_search_rows, expected_held_out_rows},
      tokens_per_channel_(gram_tokens_per_channel) {
  for (const ScalingGroup& group : groups) {
    index_[group.input] = stats_.size();
    stats_.push_back(no_sums(group.input, graph.value(group.input).width));
  }
}

void Observer::observe(ValueId value, const float* rows, int64_t count, int64_t stride, Split which,
                       BesideRows beside) {
  const auto found = index_.find(value);
  if (found == index_.end()) return;
  InputStats& stats = stats_[found->second];
  SplitStats& split = which == Split::kSearch ? stats.search : stats.held_out;
  const int64_t k = stats.k;

  // Channels are split over threads, rows summed in order: the result does not depend on the thread
  // count.
  matmul_.pool().parallel_for(k, [&](int64_t begin, int64_t end) {
    float* mean = stats.mean_abs.data<float>();
    float* largest = stats.max_abs.data<float>();
    for (int64_t t = 0; t < count; ++t)
      for (int64_t i = begin; i < end; ++i) {
        const float magnitude = std::fabs(rows[t * stride + i]);
        if (which == Split::kSearch) mean[i] += magnitude;
        largest[i] = std::max(largest[i], magnitude);
      }
  });

  const ObservedRows chosen =
      observed_rows(split, count, k, expected_[static_cast<int>(which)], tokens_per_channel_);
  for (const int64_t t : chosen.sampled)
    std::memcpy(split.sample.data<float>() + split.sample_rows++ * k, rows + t * stride, k * 4);
  if (chosen.gram_count > 0)
    add_gram(rows + chosen.first * stride, chosen.gram_count, stride * chosen.every, k,
             {beside.rows + chosen.first * beside.width, beside.width}, chosen.every * beside.width,
             split);
  split.tokens += count;
}

void Observer::add_gram(const float* rows, int64_t count, int64_t stride, int64_t k,
                        BesideRows beside, int64_t beside_stride, SplitStats& split) {
  split.gram_tokens += count;
  transpose(rows, count, stride, k, transposed_);
  if (beside.width > 0) {
    transpose(beside.rows, count, beside_stride, beside.width, beside_);
    if (split.cross.empty()) split.cross = Tensor::zeros(DType::kF32, {beside.width, k});
  }
  auto* transposed = transposed_.as<float>();
  const int64_t block = round_up(ceil_div(k, kBlocks), 16);
  for (int64_t column = 0; column < k; column += block) {
    const int64_t columns = std::min(block, k - column);
    const cpu::PackedWeight packed = matmul_.pack(transposed + column * count, columns, count);
    matmul_.multiply(transposed, count, std::min(k, column + block), packed,
                     split.gram.data<float>() + column, k, Matmul::Output::kAccumulate);
    if (beside.width > 0)
      matmul_.multiply(beside_.as<float>(), count, beside.width, packed,
                       split.cross.data<float>() + column, k, Matmul::Output::kAccumulate);
  }
}

// out [k, count]
void Observer::transpose(const float* rows, int64_t count, int64_t stride, int64_t k, Buffer& out) {
  if (k * count * 4 > out.bytes()) out = Buffer(k * count * 4);
  auto* transposed = out.as<float>();
  constexpr int64_t kTile = 32;
  matmul_.pool().parallel_for(ceil_div(k, kTile), [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
      for (int64_t t0 = 0; t0 < count; t0 += kTile)
        for (int64_t i = tile * kTile; i < std::min(k, (tile + 1) * kTile); ++i)
          for (int64_t t = t0; t < std::min(count, t0 + kTile); ++t)
            transposed[i * count + t] = rows[t * stride + i];
  });
}

std::vector<InputStats> Observer::finish() {
  finish_statistics(stats_, matmul_.pool());
  return std::move(stats_);
}

InputStats no_sums(ValueId value, int64_t k, bool host_gram) {
  InputStats stats;
  stats.value = value;
  stats.k = k;
  stats.mean_abs = Tensor::zeros(DType::kF32, {k});
  stats.max_abs = Tensor::zeros(DType::kF32, {k});
  for (SplitStats* split : {&stats.search, &stats.held_out}) {
    if (host_gram) split->gram = Tensor::zeros(DType::kF32, {k, k});
    split->sample = Tensor(DType::kF32, {Observer::kSampleRows, k});
  }
  return stats;
}

ObservedRows observed_rows(const SplitStats& split, int64_t count, int64_t k, int64_t expected,
                           int64_t gram_tokens_per_channel) {
  ObservedRows chosen;
  expected = std::max<int64_t>(1, expected);
  const int64_t step = std::max<int64_t>(1, expected / Observer::kSampleRows);
  int64_t rows = split.sample_rows;
  // An odd offset that moves on with each sample keeps the positions within sequences mixed.
  for (int64_t t = 0; t < count && rows < Observer::kSampleRows; ++t) {
    if (split.tokens + t != rows * step + (rows * 7) % step) continue;
    chosen.sampled.push_back(t);
    ++rows;
  }
  chosen.every = std::max<int64_t>(1, expected / (gram_tokens_per_channel * k));
  chosen.first = (chosen.every - split.tokens % chosen.every) % chosen.every;
  if (chosen.first < count) chosen.gram_count = ceil_div(count - chosen.first, chosen.every);
  return chosen;
}

namespace {

// Rows [begin, end) of the mean, and the columns that mirror them. In tiles: columns of a large
// matrix lie in pages of their own.
void finish_gram(float* gram, int64_t k, float scale, int64_t begin, int64_t end) {
  constexpr int64_t kTile = 64;
  for (int64_t first = begin; first < end; first += kTile)
    for (int64_t column = first; column < k; column += kTile)
      for (int64_t i = first; i < std::min(end, first + kTile); ++i)
        for (int64_t j = std::max(i, column); j < std::min(k, column + kTile); ++j)
          gram[j * k + i] = gram[i * k + j] *= scale;
}

template <typename ForRows>
void finish(std::vector<InputStats>& sums, ForRows&& for_rows) {
  for (InputStats& stats : sums) {
    const int64_t k = stats.k;
    for (float& value : stats.mean_abs.f32())
      value /= static_cast<float>(std::max<int64_t>(1, stats.search.tokens));
    for (SplitStats* split : {&stats.search, &stats.held_out}) {
      const float scale = 1.0f / static_cast<float>(std::max<int64_t>(1, split->gram_tokens));
      float* gram = split->gram.data<float>();
      for_rows(k, [=](int64_t begin, int64_t end) { finish_gram(gram, k, scale, begin, end); });
      if (!split->cross.empty())
        for (float& value : split->cross.f32()) value *= scale;
    }
    if (stats.held_out.tokens == 0) {
      stats.held_out.tokens = stats.search.tokens;
      stats.held_out.gram_tokens = stats.search.gram_tokens;
      stats.held_out.gram = stats.search.gram.clone();
      if (!stats.search.cross.empty()) stats.held_out.cross = stats.search.cross.clone();
      stats.held_out.sample = stats.search.sample.clone();
      stats.held_out.sample_rows = stats.search.sample_rows;
    }
  }
}

}  // namespace

void finish_statistics(std::vector<InputStats>& sums) {
  finish(sums, [](int64_t rows, const auto& f) { f(0, rows); });
}

void finish_statistics(std::vector<InputStats>& sums, ThreadPool& pool) {
  // The first rows are the longest: small parts in turn keep threads equally busy.
  finish(sums, [&pool](int64_t rows, const auto& f) {
    constexpr int64_t kPart = 64;
    pool.run([&](const Worker& worker) {
      for (int64_t part = worker.index; part * kPart < rows; part += worker.count)
        f(part * kPart, std::min(rows, (part + 1) * kPart));
    });
  });
}

}  // namespace whit
