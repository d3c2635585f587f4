#include "quantize/divergence.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace whit {
Stage::Stage(const Graph& graph, NodeRange range, const WeightProvider& weights, int64_t length,
             cpu::Isa isa, ThreadPool& pool)
    : length_(length),
      sequences_(std::max<int64_t>(1, kRunRows / length)),
      width_(graph.value(graph.range_output(range)).width),
      program_(graph, range, weights, {.max_tokens = sequences_ * length, .isa = isa}, pool),
      cache_(graph, range, DType::kF32, sequences_, round_up(length, 16)) {}

void Stage::advance(float* hidden, int64_t rows, const RopeTables& rope) {
  for (int64_t first = 0; first < rows; first += sequences_ * length_) {
    const int64_t count = std::min(sequences_, (rows - first) / length_);
    const std::vector<int64_t> starts(count, 0), lengths(count, length_);
    const ContiguousBatch batch(starts, lengths, cache_.page_tokens());
    Program::Input input;
    input.hidden = hidden + first * width_;
    input.batch = batch.view();
    input.rope = &rope;
    input.cache = &cache_;
    std::memcpy(hidden + first * width_, program_.run(input), count * length_ * width_ * 4);
  }
}

HeadComparison::HeadComparison(const Model& model, cpu::Isa isa, ThreadPool& pool)
    : isa_(isa),
      pool_(pool),
      vocab_(model.config().vocab_size),
      program_(model.graph(), model.graph().head(), model.weights(),
               {.max_tokens = kRows, .isa = isa}, pool) {}

const float* HeadComparison::logits(const float* states, int64_t count) {
  Program::Input input;
  input.hidden = states;
  input.batch.t = count;
  return program_.run(input);
}

std::vector<double> HeadComparison::divergences(const Tensor& exact, const Tensor& states) {
  const cpu::SmallOps& ops = cpu::small_ops(isa_);
  const int64_t rows = exact.dim(0), width = exact.dim(1), variants = states.dim(0) / rows;
  std::vector<double> sums(variants, 0.0);
  std::vector<float> reference(kRows * vocab_), lse(kRows);
  std::vector<double> row_divergence(kRows);
  for (int64_t first = 0; first < rows; first += kRows) {
    const int64_t count = std::min(kRows, rows - first);
    std::memcpy(reference.data(), logits(exact.data<float>() + first * width, count),
                count * vocab_ * 4);
    pool_.parallel_for(count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        lse[i] = ops.log_sum_exp(reference.data() + i * vocab_, vocab_);
    });
    for (int64_t variant = 0; variant < variants; ++variant) {
      const float* x = logits(states.data<float>() + (variant * rows + first) * width, count);
      pool_.parallel_for(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          row_divergence[i] =
              ops.kl_divergence(reference.data() + i * vocab_, lse[i], x + i * vocab_,
                                ops.log_sum_exp(x + i * vocab_, vocab_), vocab_);
      });
      sums[variant] =
          std::accumulate(row_divergence.begin(), row_divergence.begin() + count, sums[variant]);
    }
  }
  for (double& sum : sums) sum = std::max(0.0, sum / static_cast<double>(rows));
  return sums;
}

}  // namespace whit
