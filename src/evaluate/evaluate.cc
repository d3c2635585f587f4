#include "evaluate/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/progress.h"

namespace whit {
namespace {

// Welford's mean and variance.
class Mean {
 public:
  void add(double x) {
    ++count_;
    const double delta = x - mean_;
    mean_ += delta / static_cast<double>(count_);
    squares_ += delta * (x - mean_);
  }
  double mean() const { return mean_; }
  double standard_error() const {
    return count_ < 2 ? 0
                      : std::sqrt(squares_ / static_cast<double>(count_ - 1) /
                                  static_cast<double>(count_));
  }
  int64_t count() const { return count_; }

 private:
  int64_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

// One window's tokens through a model, step by step; logits of any rows of the last step.
class WindowRunner {
 public:
  WindowRunner(Executor& executor, int64_t window, DType kv_dtype)
      : executor_(executor), cache_(executor.make_cache(1, window, kv_dtype)) {}
  void step(std::span<const int32_t> ids, int64_t start) {
    const int64_t starts[] = {start}, counts[] = {static_cast<int64_t>(ids.size())};
    const ContiguousBatch batch(starts, counts, cache_.page_tokens());
    executor_.step(ids, batch.view(), cache_);
  }
  const float* logits(std::span<const int32_t> rows) { return executor_.logits(rows); }

 private:
  Executor& executor_;
  KvCache cache_;
};

}  // namespace

Json to_json(const EvalResult& result) {
  Json json = {{"ppl", result.ppl},
               {"ppl_stderr", result.ppl_stderr},
               {"tokens", result.tokens},
               {"seconds", result.seconds}};
  if (result.kld) {
    json["reference_ppl"] = *result.reference_ppl;
    json["ppl_ratio"] = *result.ppl_ratio;
    json["kld"] = *result.kld;
    json["kld_stderr"] = *result.kld_stderr;
    json["top1_agreement"] = *result.top1_agreement;
  }
  return json;
}

EvalResult evaluate(Executor& model, Executor* reference, std::span<const int32_t> ids,
                    const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t vocab = model.config().vocab_size;
  if (reference != nullptr && reference->config().vocab_size != vocab)
    throw Error(ErrorKind::kInvalidArgument,
                "the reference has a vocabulary of {}, the model of {}: not comparable",
                reference->config().vocab_size, vocab);
  if (ids.size() < 2)
    throw Error(ErrorKind::kInvalidArgument,
                "the text has {} tokens; at least 2 are needed to score one", ids.size());
  const int64_t window = std::min<int64_t>(options.ctx_size, static_cast<int64_t>(ids.size()));
  for (const Executor* executor : std::initializer_list<const Executor*>{&model, reference})
    if (executor != nullptr && (window < 2 || window > executor->options().max_context))
      throw Error(ErrorKind::kInvalidArgument, "--ctx-size {} is outside 2 … {} of the model",
                  window, executor->options().max_context);
  int64_t windows = static_cast<int64_t>(ids.size()) / window;
  if (options.max_windows > 0) windows = std::min(windows, options.max_windows);

  int64_t chunk = std::min(model.options().max_tokens, model.options().max_logit_rows);
  WindowRunner runner(model, window, options.kv_dtype);
  std::optional<WindowRunner> reference_runner;
  if (reference != nullptr) {
    chunk = std::min({chunk, reference->options().max_tokens, reference->options().max_logit_rows});
    reference_runner.emplace(*reference, window, options.reference_kv_dtype);
  }

  Mean nll, reference_nll, divergence;
  int64_t agreements = 0;
  const cpu::SmallOps& ops = model.ops();
  struct Row {
    double nll, reference_nll, kld;
    bool agrees;
  };
  std::vector<Row> results(chunk);
  std::vector<int32_t> rows(chunk);
  std::iota(rows.begin(), rows.end(), 0);
  Progress progress("evaluating", windows * window);
  for (int64_t w = 0; w < windows; ++w)
    for (int64_t first = 0; first < window; first += chunk) {
      const int64_t count = std::min(chunk, window - first);
      const auto part = ids.subspan(w * window + first, count);
      // The last token of a window is input to nothing that is scored, but stepping over it keeps
      // the code one path.
      runner.step(part, first);
      if (reference_runner) reference_runner->step(part, first);
      const int64_t scored = first + count == window ? count - 1 : count;
      if (scored > 0) {
        const std::span<const int32_t> scored_rows(rows.data(), scored);
        const float* logits = runner.logits(scored_rows);
        const float* reference_logits =
            reference_runner ? reference_runner->logits(scored_rows) : nullptr;
        model.pool().parallel_for(scored, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) {
            const float* x = logits + i * vocab;
            const int32_t target = ids[w * window + first + i + 1];
            const float lse = ops.log_sum_exp(x, vocab);
            Row row{.nll = lse - x[target], .reference_nll = 0, .kld = 0, .agrees = false};
            if (reference_logits != nullptr) {
              const float* y = reference_logits + i * vocab;
              const float reference_lse = ops.log_sum_exp(y, vocab);
              row.reference_nll = reference_lse - y[target];
              row.kld = ops.kl_divergence(y, reference_lse, x, lse, vocab);
              row.agrees = ops.argmax(x, vocab) == ops.argmax(y, vocab);
            }
            results[i] = row;
          }
        });
        for (int64_t i = 0; i < scored; ++i) {
          nll.add(results[i].nll);
          reference_nll.add(results[i].reference_nll);
          divergence.add(results[i].kld);
          agreements += results[i].agrees ? 1 : 0;
        }
      }
      progress.update(w * window + first + count, fmt::format("PPL {:.3f}", std::exp(nll.mean())));
    }

  EvalResult result;
  result.tokens = nll.count();
  result.ppl = std::exp(nll.mean());
  result.ppl_stderr = result.ppl * nll.standard_error();
  if (reference != nullptr) {
    result.reference_ppl = std::exp(reference_nll.mean());
    result.ppl_ratio = result.ppl / *result.reference_ppl;
    result.kld = divergence.mean();
    result.kld_stderr = divergence.standard_error();
    result.top1_agreement = static_cast<double>(agreements) / static_cast<double>(nll.count());
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace whit
