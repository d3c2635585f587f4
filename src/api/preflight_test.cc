#include "api/preflight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
