#include "quantize/kv_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <memory>

#include "engine/model.h"
#include "quantize/quantize.h"
#include "quantize/rounding.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using ::testing::HasSubstr;
using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

// Keys with a bias of `size` in the slowest channel of every head: large for every token, and no
// part of what distinguishes them.
WeightProvider with_huge_channel(const Model& model, float size) {
  WeightProvider provider = model.weights();
  provider.bias = [plain = provider.bias, size, dh = model.config().head_dim](const Node& node) {
    Tensor bias = plain(node).clone();
    if (node.name.ends_with("k_proj"))
      for (int64_t d = dh - 1; d < node.n; d += dh) bias.f32()[d] += size;
    return bias;
  };
  return provider;
}

TEST(KvLayoutTest, huge_channels_of_biased_keys_are_told_from_tokens) {
  const Model model = Model::open(golden_model("qwen2"));
  ThreadPool pool(2);
  const CalibrationData data = random_tokens(model, 16, 96, 3);
  const KvLayouts plain = measure_kv_layouts(model.config(), model.graph(), model.weights(), data,
                                             cpu::detected_isa(), pool);
  const KvLayouts huge =
      measure_kv_layouts(model.config(), model.graph(), with_huge_channel(model, 100), data,
                         cpu::detected_isa(), pool);
  ASSERT_EQ(std::ssize(huge.int8), model.graph().layers());
  for (int layer = 0; layer < model.graph().layers(); ++layer) {
    // A step of the code of 8 bits is 2⁻⁸ of the range, of 4 bits 2⁻⁴: an output is off by less
    // than a step relative to its size, and the huge channel costs keys per channel nothing.
    EXPECT_LT(plain.int8[layer].token, 0x1p-12);
    EXPECT_LT(plain.int4[layer].channel, 0x1p-4);
    EXPECT_GT(plain.int8[layer].token, 0);
    EXPECT_LT(huge.int8[layer].channel, huge.int8[layer].token) << layer;
    EXPECT_LT(huge.int4[layer].channel, huge.int4[layer].token) << layer;
  }
  const Json json = to_json(huge);
  EXPECT_EQ(json["int8"]["keys"], Json::array({"channel", "channel"}));
  EXPECT_EQ(json["int4"]["keys"], Json::array({"channel", "channel"}));
}

// Channel d of every key divided, and of every query multiplied, by factor(d): the two channels of
// a rotated pair share one, and it is a power of two, so that all products stay as they are.
WeightProvider with_smoothed_keys(const Model& model, const WeightProvider& weights,
                                  const std::function<float(int64_t)>& factor) {
  WeightProvider provider = weights;
  const int64_t dh = model.config().head_dim;
  const auto of_row = [factor, dh](const Node& node, int64_t row) {
    if (node.name.ends_with("k_proj")) return 1 / factor(row % dh % (dh / 2));
    return node.name.ends_with("q_proj") ? factor(row % dh % (dh / 2)) : 1.0f;
  };
  provider.linear = [plain = weights.linear, of_row](const Node& node) {
    const LinearWeight weight = plain(node);
    auto scaled = std::make_shared<Tensor>(DType::kF32, Shape{node.n, node.k});
    dequantize_rows(weight.view, 0, node.n, scaled->data<float>());
    for (int64_t row = 0; row < node.n; ++row)
      for (int64_t i = 0; i < node.k; ++i)
        scaled->data<float>()[row * node.k + i] *= of_row(node, row);
    return LinearWeight{.view = f32_view(*scaled), .owner = scaled};
  };
  provider.bias = [plain = weights.bias, of_row](const Node& node) {
    Tensor bias = plain(node).clone();
    for (int64_t row = 0; row < node.n; ++row) bias.f32()[row] *= of_row(node, row);
    return bias;
  };
  return provider;
}

// Why keys are not smoothed: factors folded into q and k help one scale per token, but scales per
// channel take any factor, and do better than the best of them.
TEST(KvLayoutTest, smoothed_keys_lose_more_than_keys_with_scales_per_channel) {
  const Model model = Model::open(golden_model("qwen2"));
  ThreadPool pool(2);
  const CalibrationData data = random_tokens(model, 16, 96, 3);
  const WeightProvider huge = with_huge_channel(model, 30);
  const int64_t last = model.config().head_dim / 2 - 1;
  const auto losses = [&](float factor) {
    return measure_kv_layouts(
        model.config(), model.graph(),
        with_smoothed_keys(model, huge, [=](int64_t d) { return d == last ? factor : 1.0f; }), data,
        cpu::detected_isa(), pool);
  };
  const KvLayouts plain = losses(1);
  double best = 1;
  for (const float factor : {4.0f, 8.0f, 16.0f, 32.0f}) {
    const KvLayouts smoothed = losses(factor);
    for (int layer = 0; layer < model.graph().layers(); ++layer) {
      best = std::min(best, smoothed.int8[layer].token / plain.int8[layer].token);
      EXPECT_GT(smoothed.int8[layer].token, 2 * plain.int8[layer].channel) << factor;
      EXPECT_GT(smoothed.int4[layer].token, 2 * plain.int4[layer].channel) << factor;
      EXPECT_DOUBLE_EQ(smoothed.int8[layer].channel, plain.int8[layer].channel) << factor;
      EXPECT_DOUBLE_EQ(smoothed.int4[layer].channel, plain.int4[layer].channel) << factor;
    }
  }
  EXPECT_LT(best, 0.5) << "it does help scales per token";
}

TEST(KvLayoutTest, an_engine_carries_the_choice_and_others_follow_the_biases) {
  ScratchDirectory scratch;
  const Model source = Model::open(with_tokenizer(scratch, "qwen2"));
  ThreadPool pool(2);
  const CalibrationData data = random_tokens(source, 16, 48, 3);
  const Recipe recipe{
      .mode = "awq", .scheme = QuantScheme::preset("w8a8"), .output = scratch.path() / "engine"};
  quantize_model(source, {&recipe, 1}, &data, {.isa = cpu::detected_isa()}, pool);
  const Model engine = Model::open(recipe.output);
  for (const std::string type : {"int8", "int4"}) {
    const Json& keys = engine.engine()->manifest().kv_cache.at(type).at("keys");
    const KvFormat format = engine.kv_format(type);
    ASSERT_EQ(std::ssize(format.key_layouts), source.graph().layers());
    for (int layer = 0; layer < source.graph().layers(); ++layer) {
      EXPECT_EQ(name(format.key_layout(layer)), keys[layer].get<std::string>());
      EXPECT_EQ(source.kv_format(type).key_layout(layer), KeyLayout::kChannel);
    }
  }
  const Model plain = Model::open(golden_model("mistral"));
  EXPECT_EQ(plain.kv_format("int8").key_layout(0), KeyLayout::kToken);
  EXPECT_EQ(plain.kv_format("int4").key_layout(0), KeyLayout::kChannel);
  EXPECT_EQ(engine.kv_format("auto").type, KvType::kF16);
  try {
    plain.kv_format("int9");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("auto, f32, f16, bf16, int8, int4"));
  }
}

}  // namespace
}  // namespace whit
