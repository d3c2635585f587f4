#include "api/quality_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/loaded_model.h"
#include "evaluate/streamed.h"
#include "quantize/quantize.h"
#include "text_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

std::string refusal(const Json& quality, const QualityLimits& limits) {
  try {
    check_quality(quality, limits, "ENGINE");
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST(QualityGateTest, figures_beyond_a_limit_are_refused_with_both_numbers) {
  const Json quality = {{"ppl", 21.0}, {"reference_ppl", 20.0}, {"ppl_ratio", 1.05}, {"kld", 0.04}};
  EXPECT_EQ(refusal(quality, {}), "accepted");
  EXPECT_EQ(refusal(quality, {.ppl_increase = 0.06, .kld = 0.04}), "accepted");
  EXPECT_THAT(refusal(quality, {.ppl_increase = 0.04}),
              HasSubstr("5.00 % (21.000 instead of 20.000"));
  for (const Json& damaged : {Json(), Json(5), Json::array({1}), Json{{"text", 5}, {"kld", 9.0}}})
    EXPECT_THAT(refusal(damaged, {.kld = 0.1}), HasSubstr("ENGINE")) << damaged;
  EXPECT_THAT(refusal(quality, {.kld = 0.039}), HasSubstr("0.0400, beyond the limit of 0.0390"));
  EXPECT_EQ(refusal(Json::object(), {}), "accepted");
  EXPECT_THAT(refusal(Json::object(), {.kld = 1}), HasSubstr("--record"));
  EXPECT_THAT(refusal({{"kld", "low"}}, {.kld = 1}), HasSubstr("--record"));
  EXPECT_THAT(refusal({{"kld", nullptr}}, {.kld = 1}), HasSubstr("--record"));
}

TEST(QualityGateTest, a_share_is_a_number_or_per_cent) {
  EXPECT_DOUBLE_EQ(parse_share("0.05"), 0.05);
  EXPECT_DOUBLE_EQ(parse_share("5%"), 0.05);
  for (const char* wrong : {"", "%", "-1", "x", "nan", "inf", "5 %", "1.0x"})
    EXPECT_THROW(parse_share(wrong), Error) << wrong;
}

// A token's logits do not depend on how the model is run, so neither do the figures.
TEST(EvaluateStreamedTest, gives_the_figures_of_whole_models) {
  const TextModel files;
  const Model original = Model::open(files.path());
  ThreadPool pool(2);
  const Recipe recipe{.mode = "rtn",
                      .scheme = QuantScheme::preset("w4a8", 32),
                      .output = files.folder() / "engine"};
  quantize_model(original, {&recipe, 1}, nullptr, {.isa = cpu::detected_isa()}, pool);
  const Model engine = Model::open(recipe.output);
  std::vector<int32_t> ids;
  for (int i = 0; i < 200; ++i) ids.push_back(4 + i * 37 % 200);
  const EvalOptions options{.ctx_size = 48,
                            .kv_dtype = engine.default_kv_dtype(),
                            .reference_kv_dtype = original.default_kv_dtype()};
  const ExecutorOptions executor{.max_tokens = 48, .max_context = 64, .isa = cpu::detected_isa()};
  LoadedModel whole(recipe.output, executor, pool), reference(files.path(), executor, pool);
  const EvalResult direct = evaluate(*whole.executor, reference.executor.get(), ids, options);
  const EvalResult streamed =
      evaluate_streamed(engine, original, ids, options, cpu::detected_isa(), pool);
  EXPECT_EQ(streamed.tokens, direct.tokens);
  EXPECT_DOUBLE_EQ(streamed.ppl, direct.ppl);
  EXPECT_DOUBLE_EQ(*streamed.kld, *direct.kld);
  EXPECT_DOUBLE_EQ(*streamed.ppl_ratio, *direct.ppl_ratio);
  EXPECT_DOUBLE_EQ(*streamed.top1_agreement, *direct.top1_agreement);
}

}  // namespace
}  // namespace whit
