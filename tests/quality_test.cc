// What quantization may cost on a real model: PPL and KL divergence on WikiText-2 of
// SmolLM2-135M-Instruct, calibrated on the validation text. The bounds are figures that have been
// landed (README), with the margin that fewer windows and samples need; a change that passes them
// by has made quality worse.
#include <gtest/gtest.h>

#include <cstdlib>

#include "base/file.h"
#include "evaluate/evaluate.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::ScratchDirectory;

constexpr int64_t kWindows = 4, kContext = 1024, kSamples = 16;

// One calibration, the engines of all recipes, each against the unquantized model.
TEST(QualityTest, quantized_models_stay_within_the_landed_divergence_slow) {
  const char* gguf = std::getenv("WHIT_SMOL_GGUF");
  const char* wikitext = std::getenv("WHIT_WIKITEXT");
  if (gguf == nullptr || wikitext == nullptr)
    GTEST_SKIP() << "needs WHIT_SMOL_GGUF (the default model) and WHIT_WIKITEXT (a directory with "
                    "valid.txt, test.txt)";
  const Model source = Model::open(gguf);
  const std::filesystem::path text(wikitext);
  const CalibrationData data = calibration_from_text(
      source.tokenizer(), read_file(text / "valid.txt"), "valid.txt", kSamples, 512);
  const std::vector<int32_t> ids =
      source.tokenizer().encode(std::string_view(read_file(text / "test.txt")).substr(0, 100000));

  struct Case {
    const char *mode, *scheme;
    double ppl_ratio, kld;
  };
  const std::vector<Case> cases = {{"awq", "w4a16", 1.21, 0.170},
                                   {"awq", "w4a8", 1.23, 0.180},
                                   {"smoothquant", "w8a8", 1.014, 0.0106}};
  ScratchDirectory scratch;
  ThreadPool pool;
  std::vector<Recipe> recipes;
  for (const Case& c : cases)
    recipes.push_back({.mode = c.mode,
                       .scheme = QuantScheme::preset(c.scheme),
                       .head = "bf16",
                       .output = scratch.path() / c.scheme});
  const cpu::Isa isa = cpu::detected_isa();
  const std::vector<QuantizeSummary> summaries =
      quantize_model(source, recipes, &data, {.isa = isa}, pool);
  const ExecutorOptions options{.max_context = kContext, .isa = isa};
  Executor reference(source.config(), source.graph(), source.weights(), options, pool);
  for (size_t i = 0; i < cases.size(); ++i) {
    const Model engine = Model::open(recipes[i].output);
    Executor executor(engine.config(), engine.graph(), engine.weights(), options, pool);
    const EvalResult result =
        evaluate(executor, &reference, ids,
                 {.ctx_size = kContext, .max_windows = kWindows, .kv_dtype = DType::kF16});
    EXPECT_EQ(result.tokens, kWindows * (kContext - 1));
    EXPECT_LE(*result.ppl_ratio, cases[i].ppl_ratio) << cases[i].mode << " " << cases[i].scheme;
    EXPECT_LE(*result.kld, cases[i].kld) << cases[i].mode << " " << cases[i].scheme;
    for (const GroupReport& report : summaries[i].reports)
      EXPECT_LE(report.error, report.rtn_error * (1 + 1e-6)) << report.name;
    RecordProperty(std::string(cases[i].scheme) + "_kld", std::to_string(*result.kld));
  }
}

}  // namespace
}  // namespace whit
