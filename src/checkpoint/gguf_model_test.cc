// GGUF → Hugging Face: names, config, row order, RoPE scaling.
#include <cmath>
#include <numbers>

#include "checkpoint/checkpoint.h"
#include "checkpoint/contents.h"
#include "checkpoint/gguf_rope.h"
#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::GgufBuilder;
using test::tiny_gguf;

// The bytes live as long as the checkpoint that reads them.
struct Opened {
  explicit Opened(const GgufBuilder& gguf)
      : bytes(gguf.build()),
        checkpoint(read_gguf(std::make_shared<const GgufFile>(test::bytes_of(bytes), "m.gguf"))) {}
  std::string bytes;
  Checkpoint checkpoint;
};

void refuses(ErrorKind kind, const std::vector<std::string>& parts, const GgufBuilder& gguf) {
  expect_error(kind, parts, [&] { Opened{gguf}; });
}

std::vector<float> counted(int count) {
  std::vector<float> result(count);
  for (int i = 0; i < count; ++i) result[i] = static_cast<float>(i);
  return result;
}
std::vector<float> values(const Tensor& tensor) {
  return {tensor.f32().begin(), tensor.f32().end()};
}

TEST(GgufModel, rebuilds_the_config_under_hugging_face_keys) {
  const Opened opened(
      tiny_gguf().u32("tokenizer.ggml.eos_token_id", 2).u32("tokenizer.ggml.eot_token_id", 5));
  const Json& config = opened.checkpoint.config();
  EXPECT_EQ(config["architectures"], Json::array({"LlamaForCausalLM"}));
  EXPECT_EQ(config["hidden_size"], 4);
  EXPECT_EQ(config["head_dim"], 2);
  EXPECT_EQ(config["vocab_size"], 6);
  EXPECT_EQ(config["num_key_value_heads"], 1);
  EXPECT_EQ(config["rms_norm_eps"].dump(), "1e-05");
  EXPECT_EQ(config["rope_theta"], 10000.0);
  EXPECT_TRUE(config["rope_scaling"].is_null());
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["attention_bias"], false);
  EXPECT_EQ(opened.checkpoint.generation_config()["eos_token_id"], Json::array({2, 5}));
}

TEST(GgufModel, renames_tensors_and_sees_an_untied_head) {
  const Opened opened(tiny_gguf()
                          .f32_tensor("output.weight", {4, 6}, counted(24))
                          .f32_tensor("output_norm.weight", {4}, counted(4))
                          .f32_tensor("blk.0.ffn_down.weight", {8, 4}, counted(32)));
  EXPECT_EQ(opened.checkpoint.names(),
            (std::vector<std::string>{"model.embed_tokens.weight", "lm_head.weight",
                                      "model.norm.weight", "model.layers.0.mlp.down_proj.weight"}));
  EXPECT_EQ(opened.checkpoint.config()["tie_word_embeddings"], false);
  EXPECT_EQ(opened.checkpoint.get("model.layers.0.mlp.down_proj.weight").shape, (Shape{4, 8}));
}

// Two heads of four rows, as the converter stores them: row j of the first half and row j of the
// second alternate.
TEST(GgufModel, undoes_the_row_permutation_of_llama_q_and_k) {
  GgufBuilder gguf;
  gguf.string("general.architecture", "llama");
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, uint32_t>>{{"block_count", 1},
                                                     {"context_length", 8},
                                                     {"embedding_length", 8},
                                                     {"feed_forward_length", 8},
                                                     {"attention.head_count", 2}})
    gguf.u32(std::string("llama.") + key, value);
  gguf.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf.f32_tensor("token_embd.weight", {8, 1}, counted(8));
  std::vector<float> stored;
  for (const float row : {0, 2, 1, 3, 4, 6, 5, 7}) stored.insert(stored.end(), 8, row);
  gguf.f32_tensor("blk.0.attn_q.weight", {8, 8}, stored);
  gguf.f32_tensor("blk.0.attn_q.bias", {8}, {0, 2, 1, 3, 4, 6, 5, 7});
  gguf.f32_tensor("blk.0.attn_v.weight", {8, 8}, stored);
  const Opened opened(gguf);
  const Checkpoint& checkpoint = opened.checkpoint;
  const auto q = values(checkpoint.load_f32("model.layers.0.self_attn.q_proj.weight"));
  for (int row = 0; row < 8; ++row) EXPECT_EQ(q[row * 8], static_cast<float>(row));
  EXPECT_EQ(values(checkpoint.load_f32("model.layers.0.self_attn.q_proj.bias")), counted(8));
  EXPECT_EQ(values(checkpoint.load_f32("model.layers.0.self_attn.v_proj.weight")), stored);
  std::vector<float> two(16);
  checkpoint.read_rows_f32(checkpoint.get("model.layers.0.self_attn.q_proj.weight"), 5, 7,
                           two.data());
  EXPECT_EQ(two[0], 5.0f);
  EXPECT_EQ(two[8], 6.0f);
  EXPECT_EQ(checkpoint.config()["attention_bias"], true);
  EXPECT_EQ(checkpoint.config()["num_key_value_heads"], 2);
}

TEST(GgufModel, leaves_the_rows_of_qwen2_where_they_are) {
  const Opened opened(tiny_gguf("qwen2")
                          .f32_tensor("blk.0.attn_q.weight", {4, 4}, counted(16))
                          .f32_tensor("blk.0.attn_q.bias", {4}, counted(4)));
  EXPECT_EQ(values(opened.checkpoint.load_f32("model.layers.0.self_attn.q_proj.weight")),
            counted(16));
  EXPECT_EQ(values(opened.checkpoint.load_f32("model.layers.0.self_attn.q_proj.bias")), counted(4));
  EXPECT_EQ(opened.checkpoint.config()["model_type"], "qwen2");
  EXPECT_FALSE(opened.checkpoint.config().contains("attention_bias"));
}

TEST(GgufModel, a_sliding_window_makes_a_mistral) {
  const Opened opened(tiny_gguf().u32("llama.attention.sliding_window", 4096));
  EXPECT_EQ(opened.checkpoint.config()["model_type"], "mistral");
  EXPECT_EQ(opened.checkpoint.config()["sliding_window"], 4096);
}

TEST(GgufModel, refuses_what_it_cannot_express) {
  refuses(ErrorKind::kNotFound, {"m.gguf", "general.architecture"}, GgufBuilder());
  refuses(ErrorKind::kUnsupported, {"\"gemma\"", "llama", "qwen2"}, tiny_gguf("gemma"));
  refuses(ErrorKind::kUnsupported, {"experts"}, tiny_gguf().u32("llama.expert_count", 8));
  refuses(ErrorKind::kUnsupported, {"--merge"}, tiny_gguf().u32("split.count", 2));
  refuses(ErrorKind::kUnsupported, {"tensor blk.0.attn_q_norm.weight", "llama"},
          tiny_gguf().f32_tensor("blk.0.attn_q_norm.weight", {4}, counted(4)));
  refuses(ErrorKind::kUnsupported, {"blk.00.attn_norm.weight"},
          tiny_gguf().f32_tensor("blk.00.attn_norm.weight", {4}, counted(4)));
  refuses(ErrorKind::kUnsupported, {"partial RoPE"},
          tiny_gguf().u32("llama.rope.dimension_count", 1));
  refuses(ErrorKind::kUnsupported, {"value_length"},
          tiny_gguf().u32("llama.attention.value_length", 7));
  refuses(ErrorKind::kInvalidData, {"odd"}, tiny_gguf().u32("llama.attention.key_length", 3));
  refuses(ErrorKind::kInvalidData, {"attn_q.weight", "heads"},
          tiny_gguf().f32_tensor("blk.0.attn_q.weight", {1, 6}, counted(6)));
  refuses(ErrorKind::kInvalidData, {"7 tokens", "6 rows"},
          tiny_gguf().strings("tokenizer.ggml.tokens", {"a", "b", "c", "d", "e", "f", "g"}));
}

TEST(GgufModel, refuses_keys_out_of_range) {
  const auto with_heads = [](const auto& add) {
    GgufBuilder gguf;
    gguf.string("general.architecture", "llama").u32("llama.embedding_length", 4);
    add(gguf);
    return gguf;
  };
  refuses(ErrorKind::kNotFound, {"llama.attention.head_count"}, with_heads([](GgufBuilder&) {}));
  refuses(ErrorKind::kInvalidData, {"llama.attention.head_count = 0"},
          with_heads([](GgufBuilder& gguf) { gguf.u32("llama.attention.head_count", 0); }));
  refuses(ErrorKind::kInvalidData, {"out of range"}, with_heads([](GgufBuilder& gguf) {
            gguf.u32("llama.attention.head_count", UINT32_MAX);
          }));
  refuses(ErrorKind::kInvalidData, {"not a multiple"},
          with_heads([](GgufBuilder& gguf) { gguf.u32("llama.attention.head_count", 3); }));
  refuses(ErrorKind::kUnsupported, {"differs between layers"}, with_heads([](GgufBuilder& gguf) {
            gguf.i32s("llama.attention.head_count", {2, 4});
          }));
}

// As converters compute them: f32 frequencies, f32 wavelengths.
std::vector<float> llama3_factors(float factor, float low, float high, float context, int half,
                                  float theta) {
  std::vector<float> result;
  for (int i = 0; i < half; ++i) {
    const float frequency =
        1.0f / std::pow(theta, static_cast<float>(2 * i) / static_cast<float>(2 * half));
    const float wavelength = 2 * std::numbers::pi_v<float> / frequency;
    const float smooth = (context / wavelength - low) / (high - low);
    result.push_back(wavelength < context / high  ? 1.0f
                     : wavelength > context / low ? factor
                                                  : 1 / ((1 - smooth) / factor + smooth));
  }
  return result;
}

Json scaling_of(const std::vector<float>& factors, double theta) {
  GgufBuilder gguf;
  const std::string bytes = gguf.f32_tensor("rope_freqs.weight", {factors.size()}, factors).build();
  const GgufFile file(test::bytes_of(bytes), "m.gguf");
  return rope_scaling_from_gguf(file, "llama", static_cast<int64_t>(2 * factors.size()), theta);
}

TEST(GgufRope, recovers_llama3_scaling_from_its_factors) {
  struct Case {
    float factor, low, high, context;
    int half;
  };
  for (const Case& c : {Case{8, 1, 4, 8192, 64}, Case{32, 1, 4, 8192, 32}, Case{32, 1, 4, 8192, 64},
                        Case{4, 1, 8, 4096, 64}, Case{16, 1, 2, 32768, 48}}) {
    const Json scaling =
        scaling_of(llama3_factors(c.factor, c.low, c.high, c.context, c.half, 500000), 500000);
    EXPECT_EQ(scaling["rope_type"], "llama3");
    EXPECT_EQ(scaling["factor"], c.factor);
    EXPECT_EQ(scaling["low_freq_factor"], c.low);
    EXPECT_EQ(scaling["high_freq_factor"], c.high);
    EXPECT_EQ(scaling["original_max_position_embeddings"], c.context);
  }
}

TEST(GgufRope, refuses_factors_of_another_kind_and_takes_ones_for_none) {
  EXPECT_TRUE(scaling_of(std::vector<float>(32, 1.0f), 500000).is_null());
  auto factors = llama3_factors(8, 1, 4, 8192, 64, 500000);
  factors[3] = 1.01f;
  expect_error(ErrorKind::kUnsupported, {"rope_freqs.weight", "Llama 3"},
               [&] { scaling_of(factors, 500000); });
  expect_error(ErrorKind::kUnsupported, {"rope_freqs.weight"},
               [&] { scaling_of(std::vector<float>(32, std::nanf("")), 500000); });
  expect_error(ErrorKind::kUnsupported, {"rope_freqs.weight"},
               [&] { scaling_of(std::vector<float>(32, 0.0f), 500000); });
}

TEST(GgufRope, reads_linear_and_named_scalings) {
  const auto scaling = [](const GgufBuilder& gguf) {
    const std::string bytes = gguf.build();
    return rope_scaling_from_gguf({test::bytes_of(bytes), "m.gguf"}, "llama", 8, 10000);
  };
  EXPECT_EQ(scaling(GgufBuilder().f32("llama.rope.scale_linear", 2)),
            (Json{{"rope_type", "linear"}, {"factor", 2.0}}));
  EXPECT_EQ(scaling(GgufBuilder()
                        .string("llama.rope.scaling.type", "linear")
                        .f32("llama.rope.scaling.factor", 4)),
            (Json{{"rope_type", "linear"}, {"factor", 4.0}}));
  EXPECT_TRUE(scaling(GgufBuilder()
                          .string("llama.rope.scaling.type", "none")
                          .f32("llama.rope.scaling.factor", 4))
                  .is_null());
  const Json yarn = scaling(GgufBuilder()
                                .string("llama.rope.scaling.type", "yarn")
                                .f32("llama.rope.scaling.factor", 4)
                                .u32("llama.rope.scaling.original_context_length", 512));
  EXPECT_EQ(yarn["rope_type"], "yarn");
  expect_error(ErrorKind::kUnsupported, {"m.gguf", "\"longrope\""},
               [&] { scaling(GgufBuilder().string("llama.rope.scaling.type", "longrope")); });
  expect_error(ErrorKind::kInvalidData, {"llama.rope.scaling.factor", "out of range"},
               [&] { scaling(GgufBuilder().f32("llama.rope.scaling.factor", -1)); });
  EXPECT_EQ(yarn["original_max_position_embeddings"], 512);
}

}  // namespace
}  // namespace whit
