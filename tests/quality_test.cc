// What quantization may cost on a real model: PPL and KL divergence on WikiText-2 of
// SmolLM2-135M-Instruct, calibrated on the validation text. The bounds are figures that have been
// landed (README), with the margin that fewer windows and samples need; a change that passes them
// by has made quality worse.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "base/file.h"
#include "evaluate/evaluate.h"
#include "outlier_model.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::ScratchDirectory;

constexpr int64_t kContext = 512, kWindows = 10;

// All engines are made before the first test and scored in one pass, beside one run of the original
// model.
class QualityTest : public ::testing::Test {
 protected:
  struct Engine {
    const char *mode, *scheme;
    QuantizeSummary summary;
    EvalResult result;
  };

  static void SetUpTestSuite() {
    const char* gguf = std::getenv("WHIT_SMOL_GGUF");
    const char* wikitext = std::getenv("WHIT_WIKITEXT");
    if (gguf == nullptr || wikitext == nullptr) return;
    const ScratchDirectory scratch;
    const std::filesystem::path texts = wikitext, outliers = scratch.path() / "outliers";
    ThreadPool pool;
    const Model original = Model::open(gguf);
    testing::write_outlier_variant(gguf, outliers, 50, 6);
    measured_ = std::make_unique<Measured>();
    const std::string calibration = read_file(texts / "valid.txt");
    // Clipping and scales need more tokens than the migration of outliers.
    quantize(original, calibration, 16, scratch.path() / "engine", pool, measured_->engines);
    quantize(Model::open(outliers), calibration, 8, scratch.path() / "variant", pool,
             measured_->variants);
    evaluate_all(original, read_file(texts / "test.txt"), pool);
  }
  static void TearDownTestSuite() { measured_.reset(); }

  void SetUp() override {
    if (measured_ == nullptr)
      GTEST_SKIP() << "needs WHIT_SMOL_GGUF (the default model) and WHIT_WIKITEXT (a directory "
                      "with valid.txt, test.txt)";
  }

  // No worse than `ppl_ratio` and `kld`; no group of linears worse than rounding.
  static void expect_within(const Engine& engine, double ppl_ratio, double kld) {
    SCOPED_TRACE(fmt::format("{} {}", engine.mode, engine.scheme));
    EXPECT_EQ(engine.result.tokens, kWindows * (kContext - 1));
    EXPECT_LE(*engine.result.ppl_ratio, ppl_ratio);
    EXPECT_LE(*engine.result.kld, kld);
    for (const GroupReport& report : engine.summary.reports) {
      EXPECT_TRUE(std::isfinite(report.error) && std::isfinite(report.rtn_error)) << report.name;
      EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
    }
    record(engine);
  }
  static void record(const Engine& engine) {
    const std::string name = fmt::format("{}_{}", engine.mode, engine.scheme);
    RecordProperty(name + "_ppl_ratio", fmt::to_string(*engine.result.ppl_ratio));
    RecordProperty(name + "_kld", fmt::to_string(*engine.result.kld));
  }

  struct Measured {
    std::vector<Engine> engines = {{"awq", "w4a16"}, {"awq", "w4a8"}, {"smoothquant", "w8a8"}};
    std::vector<Engine> variants = {{"rtn", "w8a8"}, {"smoothquant", "w8a8"}};
    EvalResult int8_cache, int4_cache;  // of the original
  };
  static inline std::unique_ptr<Measured> measured_;

 private:
  // One calibration, the engines of all recipes.
  static void quantize(const Model& model, const std::string& text, int64_t samples,
                       const std::filesystem::path& output, ThreadPool& pool,
                       std::vector<Engine>& engines) {
    const CalibrationData data =
        calibration_from_text(model.tokenizer(), text, "valid.txt", samples, kContext);
    std::vector<Recipe> recipes;
    for (const Engine& each : engines)
      recipes.push_back(
          {.mode = each.mode,
           .scheme = QuantScheme::preset(each.scheme),
           .head = "bf16",
           .output = fmt::format("{}-{}-{}", output.string(), each.mode, each.scheme)});
    std::vector<QuantizeSummary> summaries =
        quantize_model(model, recipes, &data, {.isa = cpu::detected_isa()}, pool);
    for (size_t i = 0; i < engines.size(); ++i) engines[i].summary = std::move(summaries[i]);
  }

  static void evaluate_all(const Model& original, const std::string& text, ThreadPool& pool) {
    const ExecutorOptions options{.max_context = kContext, .isa = cpu::detected_isa()};
    std::vector<std::unique_ptr<Model>> opened;
    std::vector<std::unique_ptr<Executor>> executors;
    std::vector<EvalModel> models;
    std::vector<EvalResult*> results;
    const auto add = [&](const Model& model, const KvFormat& kv_dtype, EvalResult& result) {
      executors.push_back(std::make_unique<Executor>(model.config(), model.graph(), model.weights(),
                                                     options, pool));
      models.push_back({*executors.back(), kv_dtype});
      results.push_back(&result);
    };
    for (std::vector<Engine>* engines : {&measured_->engines, &measured_->variants})
      for (Engine& engine : *engines) {
        opened.push_back(std::make_unique<Model>(Model::open(engine.summary.output)));
        add(*opened.back(), DType::kF16, engine.result);
      }
    add(original, original.kv_format("int8"), measured_->int8_cache);
    add(original, original.kv_format("int4"), measured_->int4_cache);
    Executor reference(original.config(), original.graph(), original.weights(), options, pool);
    const std::vector<int32_t> ids =
        original.tokenizer().encode(std::string_view(text).substr(0, 40000));
    const std::vector<EvalResult> scored =
        evaluate(models, &reference, ids, {.ctx_size = kContext, .max_windows = kWindows});
    for (size_t i = 0; i < results.size(); ++i) *results[i] = scored[i];
  }
};

TEST_F(QualityTest, quantized_models_stay_within_the_landed_divergence_slow) {
  expect_within(measured_->engines[0], 1.21, 0.170);
  expect_within(measured_->engines[1], 1.23, 0.180);
  expect_within(measured_->engines[2], 1.014, 0.0106);
}

// Keys and values by codes, each token attending to what decoding would read.
TEST_F(QualityTest, integer_keys_and_values_cost_little_divergence_slow) {
  EXPECT_LE(*measured_->int8_cache.kld, 0.0005);
  EXPECT_LE(*measured_->int4_cache.kld, 0.03);
  RecordProperty("kv_int8_kld", fmt::to_string(*measured_->int8_cache.kld));
  RecordProperty("kv_int4_kld", fmt::to_string(*measured_->int4_cache.kld));
}

// Activations with outlier channels break naive int8; moving them into the weights mends it.
TEST_F(QualityTest, smoothquant_recovers_the_outlier_variant_that_naive_int8_loses_slow) {
  const Engine &naive = measured_->variants[0], &smooth = measured_->variants[1];
  EXPECT_GT(*naive.result.ppl_ratio, 1.5);
  EXPECT_GT(*naive.result.kld, 0.3);
  record(naive);
  expect_within(smooth, 1.014, 0.0106);
}

}  // namespace
}  // namespace whit
