// What quantization may cost on a real model: PPL and KL divergence on WikiText-2 of
// SmolLM2-135M-Instruct, calibrated on the validation text. The bounds are figures that have been
// landed (README), with the margin that fewer windows and samples need; a change that passes them
// by has made quality worse.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "evaluate/evaluate.h"
#include "outlier_model.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::ScratchDirectory;

constexpr int64_t kContext = 512;

struct Case {
  const char *mode, *scheme;
  double ppl_ratio, kld;
};

class QualityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* gguf = std::getenv("WHIT_SMOL_GGUF");
    const char* wikitext = std::getenv("WHIT_WIKITEXT");
    if (gguf == nullptr || wikitext == nullptr)
      GTEST_SKIP() << "needs WHIT_SMOL_GGUF (the default model) and WHIT_WIKITEXT (a directory "
                      "with valid.txt, test.txt)";
    gguf_ = gguf;
    wikitext_ = wikitext;
  }

  std::vector<QuantizeSummary> quantize(const std::filesystem::path& model,
                                        std::span<const Case> cases, int64_t samples) {
    const Model source = Model::open(model);
    const CalibrationData data = calibration_from_text(
        source.tokenizer(), read_file(wikitext_ / "valid.txt"), "valid.txt", samples, kContext);
    std::vector<Recipe> recipes;
    for (const Case& each : cases)
      recipes.push_back({.mode = each.mode,
                         .scheme = QuantScheme::preset(each.scheme),
                         .head = "bf16",
                         .output = scratch_.path() / fmt::format("{}-{}", each.mode, each.scheme)});
    return quantize_model(source, recipes, &data, {.isa = isa_}, pool_);
  }

  // Against the unquantized default model.
  std::vector<EvalResult> evaluate_engines(const std::vector<QuantizeSummary>& summaries,
                                           int64_t windows) {
    const ExecutorOptions options{.max_context = kContext, .isa = isa_};
    const Model source = Model::open(gguf_);
    Executor reference(source.config(), source.graph(), source.weights(), options, pool_);
    const std::vector<int32_t> ids = source.tokenizer().encode(
        std::string_view(read_file(wikitext_ / "test.txt")).substr(0, 40000));
    std::vector<std::unique_ptr<Model>> engines;
    std::vector<std::unique_ptr<Executor>> executors;
    std::vector<EvalModel> models;
    for (const QuantizeSummary& summary : summaries) {
      engines.push_back(std::make_unique<Model>(Model::open(summary.output)));
      const Model& engine = *engines.back();
      executors.push_back(std::make_unique<Executor>(engine.config(), engine.graph(),
                                                     engine.weights(), options, pool_));
      models.push_back({*executors.back(), DType::kF16});
    }
    const std::vector<EvalResult> results =
        evaluate(models, &reference, ids, {.ctx_size = kContext, .max_windows = windows});
    for (const EvalResult& result : results) EXPECT_EQ(result.tokens, windows * (kContext - 1));
    return results;
  }

  const cpu::Isa isa_ = cpu::detected_isa();
  ThreadPool pool_;
  ScratchDirectory scratch_;
  std::filesystem::path gguf_, wikitext_;
};

// One calibration, the engines of all recipes.
TEST_F(QualityTest, quantized_models_stay_within_the_landed_divergence_slow) {
  const std::vector<Case> cases = {{"awq", "w4a16", 1.21, 0.170},
                                   {"awq", "w4a8", 1.23, 0.180},
                                   {"smoothquant", "w8a8", 1.014, 0.0106}};
  const std::vector<QuantizeSummary> summaries = quantize(gguf_, cases, 16);
  const std::vector<EvalResult> results = evaluate_engines(summaries, 10);
  for (size_t i = 0; i < cases.size(); ++i) {
    const EvalResult& result = results[i];
    EXPECT_LE(*result.ppl_ratio, cases[i].ppl_ratio) << cases[i].mode << " " << cases[i].scheme;
    EXPECT_LE(*result.kld, cases[i].kld) << cases[i].mode << " " << cases[i].scheme;
    for (const GroupReport& report : summaries[i].reports)
      EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
    RecordProperty(fmt::format("{}_ppl_ratio", cases[i].scheme), fmt::to_string(*result.ppl_ratio));
    RecordProperty(fmt::format("{}_kld", cases[i].scheme), fmt::to_string(*result.kld));
  }
}

// Keys and values by codes, each token attending to what decoding would read.
TEST_F(QualityTest, integer_keys_and_values_cost_little_divergence_slow) {
  const ExecutorOptions options{.max_context = kContext, .isa = isa_};
  const Model source = Model::open(gguf_);
  Executor model(source.config(), source.graph(), source.weights(), options, pool_);
  Executor reference(source.config(), source.graph(), source.weights(), options, pool_);
  const std::vector<int32_t> ids = source.tokenizer().encode(
      std::string_view(read_file(wikitext_ / "test.txt")).substr(0, 12000));
  for (const auto& [type, kld] : {std::pair("int8", 0.0005), std::pair("int4", 0.03)}) {
    const EvalResult result =
        evaluate(model, &reference, ids,
                 {.ctx_size = kContext, .max_windows = 3, .kv_dtype = source.kv_format(type)});
    EXPECT_LE(*result.kld, kld) << type;
    RecordProperty(fmt::format("kv_{}_kld", type), fmt::to_string(*result.kld));
  }
}

// Activations with outlier channels break naive int8; moving them into the weights mends it.
TEST_F(QualityTest, smoothquant_recovers_the_outlier_variant_that_naive_int8_loses_slow) {
  const std::filesystem::path variant = scratch_.path() / "outliers";
  testing::write_outlier_variant(gguf_, variant, 50, 6);
  const std::vector<Case> cases = {{"rtn", "w8a8", 0, 0}, {"smoothquant", "w8a8", 1.014, 0.0106}};
  const std::vector<QuantizeSummary> summaries = quantize(variant, cases, 8);
  const std::vector<EvalResult> results = evaluate_engines(summaries, 10);
  const EvalResult &naive = results[0], &smooth = results[1];
  EXPECT_GT(*naive.ppl_ratio, 1.5);
  EXPECT_GT(*naive.kld, 0.3);
  EXPECT_LE(*smooth.ppl_ratio, cases[1].ppl_ratio);
  EXPECT_LE(*smooth.kld, cases[1].kld);
  for (const GroupReport& report : summaries[1].reports) {
    EXPECT_TRUE(std::isfinite(report.error) && std::isfinite(report.rtn_error)) << report.name;
    EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
  }
  RecordProperty("outlier_w8a8_naive_ppl_ratio", fmt::to_string(*naive.ppl_ratio));
  RecordProperty("outlier_w8a8_kld", fmt::to_string(*smooth.kld));
}

}  // namespace
}  // namespace whit
