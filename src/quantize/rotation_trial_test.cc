#include "quantize/rotation_trial.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "outlier_model.h"
#include "quantize/divergence.h"
#include "quantize/rotate.h"
#include "tiny_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

constexpr uint64_t kSeed = 3;

RotationTrial try_on(const std::filesystem::path& path, const Recipe& recipe,
                     const ScratchDirectory& scratch, int threads = 2) {
  const Model model = Model::open(path);
  const std::filesystem::path copy = scratch.path() / "rotated";
  write_rotated(model, copy, kSeed);
  const Model rotated = Model::open(copy);
  ThreadPool pool(threads);
  const CalibrationData data = random_tokens(model, 16, 24, 3);
  RotationTrial trial =
      try_rotation(model, rotated, kSeed, recipe, data, cpu::detected_isa(), pool);
  std::filesystem::remove_all(copy);
  return trial;
}

// Of the engine's layers under the model's head, on the held-out sequences.
double held_out_divergence(const Model& model, const Model& engine, const CalibrationData& data,
                           ThreadPool& pool) {
  CalibrationData judged = data;
  judged.ids.clear();
  judged.samples = 0;
  for (const CalibrationWindow& window : calibration_windows(data))
    if (window.split == Split::kHeldOut) {
      judged.ids.insert(judged.ids.end(), data.ids.begin() + window.first * data.length,
                        data.ids.begin() + (window.first + window.count) * data.length);
      judged.samples += window.count;
    }
  Tensor states[2];
  for (const Model* each : {&model, &engine}) {
    const WeightProvider embedding = model.weights(), weights = each->weights();
    LayerStream stream(model.config(), model.graph(), embedding, judged, cpu::detected_isa(), pool);
    for (int layer = 0; layer < model.graph().layers(); ++layer) stream.advance(layer, weights);
    states[each == &engine] = std::move(*stream.state()[0]);
  }
  return HeadComparison(model, cpu::detected_isa(), pool).divergences(states[0], states[1]).front();
}

TEST(RotationTrialTest, outlier_channels_that_rounding_cannot_hold_are_rotated_away) {
  ScratchDirectory scratch;
  const auto outliers = scratch.path() / "outliers";
  testing::write_outlier_variant(with_tokenizer(scratch, "mistral"), outliers, 100, 2);
  const RotationTrial trial =
      try_on(outliers, {.mode = "rtn", .scheme = QuantScheme::preset("w8a8")}, scratch);
  EXPECT_EQ(trial.tokens, 2 * 24);
  EXPECT_LT(trial.rotated, 0.2 * trial.as_is);
  EXPECT_TRUE(trial.pays());
  EXPECT_THAT(trial.told(),
              HasSubstr("rotated: on a part of the data the layers, quantized in a rotated basis, "
                        "cause 0."));
  EXPECT_EQ(to_json(trial).at("rotated"), true);
}

TEST(RotationTrialTest, without_outliers_neither_basis_loses_out_of_proportion) {
  ScratchDirectory scratch;
  const auto even = scratch.path() / "even";  // rotated once already: nothing is left to spread
  write_rotated(Model::open(with_tokenizer(scratch, "mistral")), even, kSeed + 1);
  for (const auto& [mode, scheme] :
       {std::pair("rtn", "w8a8"), std::pair("awq", "w4a8"), std::pair("auto", "w4a16")}) {
    const RotationTrial trial =
        try_on(even, {.mode = mode, .scheme = QuantScheme::preset(scheme, 32)}, scratch);
    // Two random bases, judged on 48 tokens of a model of two layers: far from the outliers'
    // factor.
    EXPECT_GT(trial.rotated, 0.4 * trial.as_is) << mode;
    EXPECT_LT(trial.rotated, 2.5 * trial.as_is) << mode;
    EXPECT_EQ(trial.pays(), trial.rotated < 0.95 * trial.as_is);
  }
}

TEST(RotationTrialTest, the_thread_count_changes_no_figure) {
  ScratchDirectory scratch;
  const auto path = with_tokenizer(scratch, "qwen2");
  const Recipe recipe{.mode = "auto", .scheme = QuantScheme::preset("w4a16", 32)};
  EXPECT_EQ(to_json(try_on(path, recipe, scratch, 1)), to_json(try_on(path, recipe, scratch, 3)));
}

// What is judged is the engine itself but for its head.
TEST(RotationTrialTest, the_loss_is_that_of_the_layers_quantized_one_after_another) {
  ScratchDirectory scratch;
  const auto path = with_tokenizer(scratch, "qwen2");
  const Model model = Model::open(path);
  const CalibrationData data = random_tokens(model, 16, 24, 3);
  ThreadPool pool(2);
  for (const char* mode : {"awq", "auto"}) {
    Recipe recipe{.mode = mode,
                  .scheme = QuantScheme::preset("w4a16", 32),
                  .head = "bf16",
                  .output = scratch.path() / mode};
    const RotationTrial trial = try_on(path, recipe, scratch);
    quantize_model(model, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool);
    const Model engine = Model::open(recipe.output);
    EXPECT_NEAR(trial.as_is, held_out_divergence(model, engine, data, pool), 1e-3 * trial.as_is)
        << mode;
  }
}

TEST(RotationTrialTest, weights_in_bf16_have_nothing_to_compare) {
  ScratchDirectory scratch;
  try {
    try_on(with_tokenizer(scratch, "mistral"),
           {.mode = "rtn", .scheme = QuantScheme::preset("bf16")}, scratch);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("lose nothing in any basis"));
  }
}

}  // namespace
}  // namespace whit
