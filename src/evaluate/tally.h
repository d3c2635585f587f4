// Scores of tokens, summed up: what every way of evaluating ends in.
#pragma once

#include <span>
#include <vector>

#include "evaluate/evaluate.h"

namespace whit {

// Welford's mean and variance.
class RunningMean {
 public:
  void add(double x) {
    ++count_;
    const double delta = x - mean_;
    mean_ += delta / static_cast<double>(count_);
    squares_ += delta * (x - mean_);
  }
  double mean() const { return mean_; }
  double standard_error() const;
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

class Tally {
 public:
  // logits [targets, vocab] of the model; of a reference likewise with their log-sum-exps, or null.
  void add(const float* logits, std::span<const int32_t> targets, int64_t vocab,
           const float* reference, std::span<const float> reference_lse, const cpu::SmallOps& ops,
           ThreadPool& pool);
  EvalResult result(bool has_reference) const;  // all but `seconds`
  double ppl() const;

 private:
  struct Row {
    double nll, reference_nll, kld;
    bool agrees;
  };
  std::vector<Row> rows_;
  RunningMean nll_, reference_nll_, divergence_;
  int64_t agreements_ = 0;
};

// Log-sum-exp of each of `rows` rows of logits [rows, vocab].
void log_sum_exps(const float* logits, int64_t rows, int64_t vocab, const cpu::SmallOps& ops,
                  ThreadPool& pool, std::span<float> out);

}  // namespace whit
