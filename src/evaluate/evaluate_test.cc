#include "evaluate/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/model.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

Executor make_executor(const Model& model, ThreadPool& pool, int64_t max_tokens) {
  return Executor(model.config(), model.graph(), model.weights(),
                  {.max_tokens = max_tokens,
                   .max_context = 64,
                   .max_logit_rows = 7,
                   .isa = cpu::detected_isa()},
                  pool);
}

TEST(EvaluateTest, perplexity_and_divergence_equal_their_definitions) {
  const Model a = Model::open(golden_model("llama_untied"));
  // Another model of the same vocabulary: its int8 rounding.
  ScratchDirectory scratch;
  ThreadPool pool(2);
  {
    const Model source = Model::open(with_tokenizer(scratch, "llama_untied"));
    const Recipe recipe{.mode = "rtn",
                        .scheme = QuantScheme::preset("w4a8", 32),
                        .output = scratch.path() / "engine"};
    quantize_model(source, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool);
  }
  const Model b = Model::open(scratch.path() / "engine");
  Executor model = make_executor(a, pool, 5), reference = make_executor(b, pool, 16);
  const std::vector<int32_t> ids = random_tokens(a, 1, 50, 4).ids;
  const EvalResult result = evaluate(model, &reference, ids, {.ctx_size = 20});
  EXPECT_EQ(result.tokens, 2 * 19);  // two whole windows, the rest dropped

  // Straight from the definition, window by window in double.
  double nll = 0, kld = 0;
  int agree = 0;
  Executor plain = make_executor(a, pool, 20), plain_reference = make_executor(b, pool, 20);
  const int64_t vocab = a.config().vocab_size;
  const auto log_softmax = [&](const float* x) {
    double sum = 0;
    for (int64_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(x[i]));
    std::vector<double> result_row(vocab);
    for (int64_t i = 0; i < vocab; ++i) result_row[i] = x[i] - std::log(sum);
    return result_row;
  };
  for (int w = 0; w < 2; ++w) {
    KvCache cache = plain.make_cache(1, 20, DType::kF32),
            reference_cache = plain.make_cache(1, 20, DType::kF32);
    const int64_t starts[] = {0}, counts[] = {20};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    const std::span<const int32_t> window(ids.data() + w * 20, 20);
    plain.step(window, batch.view(), cache);
    plain_reference.step(window, batch.view(), reference_cache);
    for (int32_t i = 0; i < 19; ++i) {
      const std::vector<double> p = log_softmax(plain.logits({&i, 1})),
                                q = log_softmax(plain_reference.logits({&i, 1}));
      nll -= p[window[i + 1]];
      int64_t best_p = 0, best_q = 0;
      for (int64_t v = 0; v < vocab; ++v) {
        kld += std::exp(q[v]) * (q[v] - p[v]);
        if (p[v] > p[best_p]) best_p = v;
        if (q[v] > q[best_q]) best_q = v;
      }
      agree += best_p == best_q ? 1 : 0;
    }
  }
  // Logits are f32: each log probability carries their rounding and that of the vocabulary's sum.
  const double bound = 64 * 6e-8 * static_cast<double>(vocab);
  EXPECT_NEAR(std::log(result.ppl), nll / 38, bound);
  EXPECT_NEAR(*result.kld, kld / 38, bound);
  EXPECT_NEAR(*result.top1_agreement, agree / 38.0, 1e-12);
  EXPECT_NEAR(*result.ppl_ratio, result.ppl / *result.reference_ppl, 1e-12);
}

TEST(EvaluateTest, a_model_against_itself_diverges_by_nothing) {
  const Model a = Model::open(golden_model("mistral"));
  ThreadPool pool(2);
  Executor model = make_executor(a, pool, 16), reference = make_executor(a, pool, 16);
  const EvalResult result =
      evaluate(model, &reference, random_tokens(a, 1, 30, 4).ids, {.ctx_size = 30});
  EXPECT_EQ(*result.kld, 0);
  EXPECT_EQ(*result.top1_agreement, 1);
  EXPECT_EQ(*result.ppl_ratio, 1);
}

TEST(EvaluateTest, texts_and_windows_that_cannot_be_scored_are_refused) {
  const Model a = Model::open(golden_model("mistral"));
  ThreadPool pool(1);
  Executor model = make_executor(a, pool, 16);
  const std::vector<int32_t> one = {1}, many(100, 1);
  EXPECT_THROW(evaluate(model, nullptr, one, {}), Error);
  EXPECT_THROW(evaluate(model, nullptr, many, {.ctx_size = 65}), Error);
  EXPECT_THROW(evaluate(model, nullptr, many, {.ctx_size = 1}), Error);
}

}  // namespace
}  // namespace whit
