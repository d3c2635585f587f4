#include "evaluate/tally.h"

#include <algorithm>
#include <cmath>

namespace whit {

double RunningMean::standard_error() const {
  return count_ < 2
             ? 0
             : std::sqrt(squares_ / static_cast<double>(count_ - 1) / static_cast<double>(count_));
}

void Tally::add(const float* logits, std::span<const int32_t> targets, int64_t vocab,
                const float* reference, std::span<const float> reference_lse,
                const cpu::SmallOps& ops, ThreadPool& pool) {
  const auto count = static_cast<int64_t>(targets.size());
  rows_.resize(std::max<size_t>(rows_.size(), targets.size()));
  pool.parallel_for(count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* x = logits + i * vocab;
      const float lse = ops.log_sum_exp(x, vocab);
      Row row{.nll = lse - x[targets[i]], .reference_nll = 0, .kld = 0, .agrees = false};
      if (reference != nullptr) {
        const float* y = reference + i * vocab;
        row.reference_nll = reference_lse[i] - y[targets[i]];
        row.kld = ops.kl_divergence(y, reference_lse[i], x, lse, vocab);
        row.agrees = ops.argmax(x, vocab) == ops.argmax(y, vocab);
      }
      rows_[i] = row;
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    nll_.add(rows_[i].nll);
    reference_nll_.add(rows_[i].reference_nll);
    divergence_.add(rows_[i].kld);
    agreements_ += rows_[i].agrees ? 1 : 0;
  }
}

EvalResult Tally::result(bool has_reference) const {
  EvalResult result;
  result.tokens = nll_.count();
  result.ppl = ppl();
  result.ppl_stderr = result.ppl * nll_.standard_error();
  if (has_reference) {
    result.reference_ppl = std::exp(reference_nll_.mean());
    result.ppl_ratio = result.ppl / *result.reference_ppl;
    result.kld = divergence_.mean();
    result.kld_stderr = divergence_.standard_error();
    result.top1_agreement = static_cast<double>(agreements_) / static_cast<double>(nll_.count());
  }
  return result;
}

double Tally::ppl() const { return std::exp(nll_.mean()); }

void log_sum_exps(const float* logits, int64_t rows, int64_t vocab, const cpu::SmallOps& ops,
                  ThreadPool& pool, std::span<float> out) {
  pool.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = ops.log_sum_exp(logits + i * vocab, vocab);
  });
}

}  // namespace whit
