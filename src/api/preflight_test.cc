#include "api/preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "text_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class PreflightTest : public ::testing::Test {
 protected:
  BuildPlan plan(const std::string& mode, const std::string& scheme) {
    return {.model_path = files_.path(),
            .recipe = {.mode = mode,
                       .scheme = QuantScheme::preset(scheme, 32),
                       .output = files_.folder() / "engine"},
            .calibration = {.source = "self", .samples = 16, .length = 32}};
  }

  TextModel files_;
  Model model_ = Model::open(files_.path());
  ThreadPool pool_{1};
};

TEST_F(PreflightTest, the_weights_size_is_what_is_written) {
  for (const auto& [mode, scheme] : std::vector<std::pair<std::string, std::string>>{
           {"rtn", "w4a16"}, {"rtn", "w8a8"}, {"rtn", "bf16"}}) {
    BuildPlan each = plan(mode, scheme);
    each.recipe.output += "-" + scheme;
    const Preflight result = preflight(model_, each, cpu::detected_isa(), pool_);
    EXPECT_FALSE(std::filesystem::exists(each.recipe.output));
    build(model_, each, cpu::detected_isa(), pool_);
    // The file has a header and up to 63 bytes of padding behind each tensor.
    const EngineDirectory engine(each.recipe.output);
    int64_t tensors = 0;
    for (const StoredTensor& tensor : engine.weights().tensors())
      tensors += static_cast<int64_t>(tensor.data.size());
    EXPECT_EQ(result.engine_bytes, tensors) << scheme;
  }
}

int64_t tensor_bytes(const std::filesystem::path& engine) {
  const EngineDirectory directory(engine);
  int64_t bytes = 0;
  for (const StoredTensor& tensor : directory.weights().tensors())
    if (!tensor.name.starts_with("__pad")) bytes += static_cast<int64_t>(tensor.data.size());
  return bytes;
}

TEST_F(PreflightTest, salient_channels_and_a_rotated_table_are_counted) {
  BuildPlan salient = plan("auto", "w4a16");
  salient.recipe.salient = {.share = 0.05};
  const Preflight all = preflight(model_, salient, cpu::detected_isa(), pool_);
  build(model_, salient, cpu::detected_isa(), pool_);
  EXPECT_EQ(all.engine_bytes, tensor_bytes(salient.recipe.output));

  salient.recipe.salient.groups = SalientRequest::Groups::kWherePaying;
  const Preflight some = preflight(model_, salient, cpu::detected_isa(), pool_);
  build(model_, salient, cpu::detected_isa(), pool_);
  EXPECT_EQ(some.engine_bytes, all.engine_bytes);
  EXPECT_GE(some.engine_bytes, tensor_bytes(salient.recipe.output));
  EXPECT_THAT(some.notes, ::testing::Contains(HasSubstr("at most")));

  BuildPlan rotated = plan("rtn", "w8a8");
  rotated.rotate = BuildPlan::Rotate::kYes;
  const Preflight turned = preflight(model_, rotated, cpu::detected_isa(), pool_);
  build(model_, rotated, cpu::detected_isa(), pool_);
  EXPECT_EQ(turned.engine_bytes, tensor_bytes(rotated.recipe.output));
  EXPECT_THAT(turned.notes, ::testing::Contains(HasSubstr("rotated copy of the model")));
}

TEST_F(PreflightTest, a_rotation_that_is_to_be_tried_is_timed_and_needs_data) {
  BuildPlan tried = plan("auto", "w4a16");
  tried.rotate = BuildPlan::Rotate::kByLoss;
  const Preflight result = preflight(model_, tried, cpu::detected_isa(), pool_);
  EXPECT_TRUE(std::any_of(result.time.begin(), result.time.end(),
                          [](const auto& part) { return part.name == "trying a rotated basis"; }));
  tried.recipe.mode = "rtn";
  EXPECT_THROW(preflight(model_, tried, cpu::detected_isa(), pool_), Error);
  EXPECT_THROW(build(model_, tried, cpu::detected_isa(), pool_), Error);
}

TEST_F(PreflightTest, an_engine_says_whether_it_was_rotated_and_why) {
  BuildPlan tried = plan("auto", "w4a16");
  tried.rotate = BuildPlan::Rotate::kByLoss;
  std::string told;
  const QuantizeSummary summary = build(model_, tried, cpu::detected_isa(), pool_,
                                        [&](const std::string& text) { told += text; });
  EXPECT_THAT(told, HasSubstr("quantized in a rotated basis"));
  EXPECT_THAT(EngineDirectory(summary.output).manifest().source, HasSubstr(told));
  EXPECT_EQ(summary.rotation.at("why"), told);
  const bool rotated = summary.rotation.at("rotated").get<bool>();
  EXPECT_EQ(rotated, summary.rotation.at("kld_rotated").get<double>() <
                         0.95 * summary.rotation.at("kld_as_is").get<double>());
  const std::filesystem::path folder = summary.output.parent_path();
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    EXPECT_EQ(entry.path().filename().string().find(".partial-"), std::string::npos);
}

TEST_F(PreflightTest, every_mode_is_estimated) {
  for (const auto& [mode, scheme] : std::vector<std::pair<std::string, std::string>>{
           {"awq", "w4a8"}, {"smoothquant", "w8a8"}, {"auto", "w4a16"}, {"awq-gptq", "w4a16"}}) {
    const Preflight result = preflight(model_, plan(mode, scheme), cpu::detected_isa(), pool_);
    EXPECT_EQ(result.calibration_tokens, 16 * 32);
    EXPECT_GT(result.seconds, 0);
    EXPECT_GT(result.peak_bytes, 0);
    EXPECT_EQ(result.tensor_parallel.size(), 3u);
    const Json json = to_json(result);
    EXPECT_GT(json["memory"].size(), 2u);
    EXPECT_GT(json["time"].size(), 2u);
  }
}

TEST_F(PreflightTest, says_what_does_not_divide) {
  ModelConfig config = model_.config();
  config.num_attention_heads = 8;
  config.num_key_value_heads = 2;
  config.head_dim = 64;
  config.intermediate_size = 1536;
  const QuantScheme g128 = QuantScheme::preset("w4a16", 128), int8 = QuantScheme::preset("w8a8");
  EXPECT_EQ(tensor_parallel_obstacle(config, g128, 2), "");
  EXPECT_EQ(tensor_parallel_obstacle(config, g128, 4), "");
  EXPECT_THAT(tensor_parallel_obstacle(config, g128, 8), HasSubstr("o_proj: a rank's 64 inputs"));
  EXPECT_EQ(tensor_parallel_obstacle(config, int8, 8), "") << "two key/value heads are copied";
  config.num_attention_heads = 9;
  EXPECT_THAT(tensor_parallel_obstacle(config, int8, 2), HasSubstr("9 heads"));
  config.num_attention_heads = 12;
  config.num_key_value_heads = 3;
  EXPECT_THAT(tensor_parallel_obstacle(config, int8, 2), HasSubstr("3 key/value heads"));
}

TEST_F(PreflightTest, a_plan_that_cannot_be_carried_out_is_refused) {
  EXPECT_THROW(preflight(model_, plan("smoothquant", "w4a16"), cpu::detected_isa(), pool_), Error);
}

}  // namespace
}  // namespace whit
