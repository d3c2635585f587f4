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

constexpr int64_t kWindows = 10, kContext = 512, kSamples = 16;

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
                                        std::span<const Case> cases) {
    const Model source = Model::open(model);
    const CalibrationData data = calibration_from_text(
        source.tokenizer(), read_file(wikitext_ / "valid.txt"), "valid.txt", kSamples, 512);
    std::vector<Recipe> recipes;
    for (const Case& each : cases)
      recipes.push_back({.mode = each.mode,
                         .scheme = QuantScheme::preset(each.scheme),
                         .head = "bf16",
                         .output = scratch_.path() / fmt::format("{}-{}", each.mode, each.scheme)});
    return quantize_model(source, recipes, &data, {.isa = isa_}, pool_);
  }

  // Against the unquantized default model.
  EvalResult evaluate_engine(const std::filesystem::path& path) {
    const ExecutorOptions options{.max_context = kContext, .isa = isa_};
    if (!reference_) {
      source_.emplace(Model::open(gguf_));
      reference_.emplace(source_->config(), source_->graph(), source_->weights(), options, pool_);
      ids_ = source_->tokenizer().encode(
          std::string_view(read_file(wikitext_ / "test.txt")).substr(0, 40000));
    }
    const Model engine = Model::open(path);
    Executor executor(engine.config(), engine.graph(), engine.weights(), options, pool_);
    const EvalResult result =
        evaluate(executor, &*reference_, ids_,
                 {.ctx_size = kContext, .max_windows = kWindows, .kv_dtype = DType::kF16});
    EXPECT_EQ(result.tokens, kWindows * (kContext - 1));
    return result;
  }

  const cpu::Isa isa_ = cpu::detected_isa();
  ThreadPool pool_;
  ScratchDirectory scratch_;
  std::filesystem::path gguf_, wikitext_;

 private:
  std::optional<Model> source_;
  std::optional<Executor> reference_;
  std::vector<int32_t> ids_;
};

// One calibration, the engines of all recipes.
TEST_F(QualityTest, quantized_models_stay_within_the_landed_divergence_slow) {
  const std::vector<Case> cases = {{"awq", "w4a16", 1.21, 0.170},
                                   {"awq", "w4a8", 1.23, 0.180},
                                   {"smoothquant", "w8a8", 1.014, 0.0106}};
  const std::vector<QuantizeSummary> summaries = quantize(gguf_, cases);
  for (size_t i = 0; i < cases.size(); ++i) {
    const EvalResult result = evaluate_engine(summaries[i].output);
    EXPECT_LE(*result.ppl_ratio, cases[i].ppl_ratio) << cases[i].mode << " " << cases[i].scheme;
    EXPECT_LE(*result.kld, cases[i].kld) << cases[i].mode << " " << cases[i].scheme;
    for (const GroupReport& report : summaries[i].reports)
      EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
    RecordProperty(fmt::format("{}_ppl_ratio", cases[i].scheme), fmt::to_string(*result.ppl_ratio));
    RecordProperty(fmt::format("{}_kld", cases[i].scheme), fmt::to_string(*result.kld));
  }
}

// Activations with outlier channels break naive int8; moving them into the weights mends it.
TEST_F(QualityTest, smoothquant_recovers_the_outlier_variant_that_naive_int8_loses_slow) {
  const std::filesystem::path variant = scratch_.path() / "outliers";
  testing::write_outlier_variant(gguf_, variant, 50, 6);
  const std::vector<Case> cases = {{"rtn", "w8a8", 0, 0}, {"smoothquant", "w8a8", 1.014, 0.0106}};
  const std::vector<QuantizeSummary> summaries = quantize(variant, cases);
  const EvalResult naive = evaluate_engine(summaries[0].output);
  EXPECT_GT(*naive.ppl_ratio, 1.5);
  EXPECT_GT(*naive.kld, 0.3);
  const EvalResult smooth = evaluate_engine(summaries[1].output);
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
