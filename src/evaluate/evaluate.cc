#include "evaluate/evaluate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "base/progress.h"
#include "evaluate/tally.h"

namespace whit {
namespace {

// One window's tokens through a model, step by step; logits of any rows of the last step.
class WindowRunner {
 public:
  WindowRunner(Executor& executor, int64_t window, const KvFormat& kv_dtype)
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

namespace {

// A model being scored.
class Scorer {
 public:
  Scorer(const EvalModel& model, int64_t window)
      : executor_(model.executor), runner_(model.executor, window, model.kv_dtype) {}

  void step(std::span<const int32_t> ids, int64_t start) { runner_.step(ids, start); }

  // Rows `rows` of the last step, whose successors are `targets`; reference logits [rows, V] and
  // their log-sum-exps, or null.
  void score(std::span<const int32_t> rows, std::span<const int32_t> targets,
             const float* reference, std::span<const float> reference_lse) {
    tally_.add(runner_.logits(rows), targets, executor_.config().vocab_size, reference,
               reference_lse, executor_.ops(), executor_.pool());
  }
  const Tally& tally() const { return tally_; }

 private:
  Executor& executor_;
  WindowRunner runner_;
  Tally tally_;
};

}  // namespace

EvalResult evaluate(Executor& model, Executor* reference, std::span<const int32_t> ids,
                    const EvalOptions& options) {
  const EvalModel one{model, options.kv_dtype};
  return evaluate({&one, 1}, reference, ids, options).front();
}

std::vector<EvalResult> evaluate(std::span<const EvalModel> models, Executor* reference,
                                 std::span<const int32_t> ids, const EvalOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t vocab = models.front().executor.config().vocab_size;
  std::vector<const Executor*> all;
  for (const EvalModel& model : models) all.push_back(&model.executor);
  if (reference != nullptr) all.push_back(reference);
  for (const Executor* executor : all)
    if (executor->config().vocab_size != vocab)
      throw Error(ErrorKind::kInvalidArgument,
                  "the reference has a vocabulary of {}, the model of {}: not comparable",
                  executor->config().vocab_size, vocab);
  if (ids.size() < 2)
    throw Error(ErrorKind::kInvalidArgument,
                "the text has {} tokens; at least 2 are needed to score one", ids.size());
  const int64_t window = std::min<int64_t>(options.ctx_size, static_cast<int64_t>(ids.size()));
  int64_t chunk = window;
  for (const Executor* executor : all) {
    if (window < 2 || window > executor->options().max_context)
      throw Error(ErrorKind::kInvalidArgument, "--ctx-size {} is outside 2 … {} of the model",
                  window, executor->options().max_context);
    chunk = std::min({chunk, executor->options().max_tokens, executor->options().max_logit_rows});
  }
  int64_t windows = static_cast<int64_t>(ids.size()) / window;
  if (options.max_windows > 0) windows = std::min(windows, options.max_windows);

  std::vector<Scorer> scorers;
  for (const EvalModel& model : models) scorers.emplace_back(model, window);
  std::optional<WindowRunner> reference_runner;
  if (reference != nullptr)
    reference_runner.emplace(*reference, window, options.reference_kv_dtype);

  std::vector<int32_t> rows(chunk);
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float> reference_lse(chunk);
  Progress progress("evaluating", windows * window);
  for (int64_t w = 0; w < windows; ++w)
    for (int64_t first = 0; first < window; first += chunk) {
      const int64_t count = std::min(chunk, window - first);
      const auto part = ids.subspan(w * window + first, count);
      // The last token of a window is input to nothing that is scored, but stepping over it keeps
      // the code one path.
      for (Scorer& scorer : scorers) scorer.step(part, first);
      if (reference_runner) reference_runner->step(part, first);
      const int64_t scored = first + count == window ? count - 1 : count;
      if (scored > 0) {
        const std::span<const int32_t> scored_rows(rows.data(), scored);
        const float* logits = nullptr;
        if (reference_runner) {
          logits = reference_runner->logits(scored_rows);
          log_sum_exps(logits, scored, vocab, reference->ops(), reference->pool(), reference_lse);
        }
        for (Scorer& scorer : scorers)
          scorer.score(scored_rows, ids.subspan(w * window + first + 1, scored), logits,
                       reference_lse);
      }
      progress.update(w * window + first + count,
                      fmt::format("PPL {:.3f}", scorers[0].tally().ppl()));
    }

  std::vector<EvalResult> results;
  for (const Scorer& scorer : scorers) {
    results.push_back(scorer.tally().result(reference != nullptr));
    results.back().seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return results;
}

}  // namespace whit
