// Engines as checkpoints of other tools and back: the codes, zero points and scales are the same
// bits, and so are the logits.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "engine/executor.h"
#include "export/hf_directory.h"
#include "runtime/batch.h"
#include "tiny_model.h"
#include "whit/llm_engine.h"
#include "whit/quantize.h"

namespace whit {
namespace {

namespace fs = std::filesystem;
using testing::ScratchDirectory;

// A random model whose every side is a multiple of 32, with a tokenizer of two letters.
fs::path make_model(const ScratchDirectory& scratch, const char* architecture) {
  const bool qwen = std::string_view(architecture) == "Qwen2ForCausalLM";
  HfContents contents;
  contents.config = {{"architectures", {architecture}},
                     {"model_type", qwen ? "qwen2" : "llama"},
                     {"hidden_act", "silu"},
                     {"hidden_size", 64},
                     {"intermediate_size", 96},
                     {"num_hidden_layers", 2},
                     {"num_attention_heads", 4},
                     {"num_key_value_heads", 2},
                     {"vocab_size", 320},
                     {"max_position_embeddings", 128},
                     {"rms_norm_eps", 1e-5},
                     {"rope_theta", 10000.0},
                     {"tie_word_embeddings", !qwen},
                     {"eos_token_id", 1},
                     {"bos_token_id", 1}};
  const Model shapes = Model::open(testing::with_tokenizer(scratch, "qwen2"));
  for (const auto& [name, text] : shapes.text_files())
    if (name != "config.json") contents.text_files.emplace_back(name, text);
  const Graph graph = build_graph(ModelConfig::from_json(contents.config, "test"));
  auto random = std::make_shared<std::mt19937>(7);
  const auto add = [&](const std::string& name, const Shape& shape, float mean) {
    contents.weights.push_back({.name = name,
                                .shape = shape,
                                .read_rows = [random, mean, columns = shape.back()](
                                                 int64_t begin, int64_t end, float* out) {
                                  std::normal_distribution<float> normal(mean, 0.125f);
                                  const int64_t rows = end - begin;
                                  for (int64_t i = 0; i < rows * columns; ++i)
                                    out[i] = normal(*random);
                                }});
  };
  for (const Node& node : graph.nodes()) {
    if (node.op == Op::kRmsNorm)
      contents.weights.push_back({.name = node.weight_name,
                                  .shape = {node.n},
                                  .read_rows = [n = node.n](int64_t, int64_t, float* out) {
                                    std::fill(out, out + n, 1.0f);
                                  }});
    if (node.op != Op::kLinear && node.op != Op::kEmbedding) continue;
    if (node.weight_name == node.name + ".weight") add(node.weight_name, {node.n, node.k}, 0);
    if (node.bias)
      contents.weights.push_back({.name = node.name + ".bias",
                                  .shape = {node.n},
                                  .read_rows = [n = node.n](int64_t, int64_t, float* out) {
                                    for (int64_t i = 0; i < n; ++i)
                                      out[i] = 0.01f * static_cast<float>(i % 7);
                                  }});
  }
  write_hf_directory(contents, scratch.path() / architecture, DType::kBF16);
  return scratch.path() / architecture;
}

Model make_engine(const ScratchDirectory& scratch, const fs::path& model,
                  const std::string& weights, const std::string& activations, BuildConfig config) {
  config.group_size = config.group_size == 128 ? 32 : config.group_size;
  config.head = "bf16";
  config.threads = 1;
  config.engine_dir = scratch.path() / "engine";
  const QuantMode mode = QuantMode::RTN;
  return Model::open(
      build_engine(model, mode, {.weight_dtype = weights, .activation_dtype = activations}, config)
          .engine_dir);
}

std::vector<float> logits(const Model& model) {
  ThreadPool pool(1);
  Executor executor(model.config(), model.graph(), model.weights(),
                    {.max_tokens = 8, .max_context = 16, .max_logit_rows = 1}, pool);
  KvCache cache = executor.make_cache(1, 16, DType::kF32);
  const std::vector<int32_t> ids = {5, 17, 300, 2};
  const int64_t starts[] = {0}, counts[] = {4};
  executor.step(ids, ContiguousBatch(starts, counts, cache.page_tokens()).view(), cache);
  const int32_t last = 3;
  const float* row = executor.logits({&last, 1});
  return {row, row + model.config().vocab_size};
}

void expect_same_weights(const Model& ours, const Model& theirs, bool activations) {
  for (const Node& node : ours.graph().nodes()) {
    if (node.op != Op::kLinear || node.layer < 0) continue;
    const LinearWeight a = ours.weights().linear(node), b = theirs.weights().linear(node);
    EXPECT_EQ(a.view.format, b.view.format) << node.name;
    EXPECT_EQ(a.view.group_size, b.view.group_size) << node.name;
    if (activations) {
      EXPECT_EQ(a.activation, b.activation) << node.name;
      EXPECT_EQ(a.static_scale, b.static_scale) << node.name;
    }
    std::vector<float> x(node.n * node.k), y(node.n * node.k);
    dequantize_rows(a, 0, node.n, x.data());
    dequantize_rows(b, 0, node.n, y.data());
    EXPECT_EQ(x, y) << node.name;
  }
}

TEST(ForeignFormats, an_engine_goes_to_compressed_tensors_and_comes_back_bit_by_bit) {
  const ScratchDirectory scratch;
  for (const char* architecture : {"LlamaForCausalLM", "Qwen2ForCausalLM"}) {
    const fs::path source = make_model(scratch, architecture);
    for (const auto& [weights, activations, symmetric, format] :
         {std::tuple{"int4", "fp16", false, "pack-quantized"},
          {"int4", "fp16", true, "pack-quantized"},
          {"int4", "int8", false, "int-quantized"},
          {"int4", "int8", true, "int-quantized"},
          {"int8", "int8", true, "int-quantized"},
          {"int8", "fp16", true, "int-quantized"},
          {"int4", "fp8", false, "pack-quantized"},
          {"int4", "fp8", true, "pack-quantized"},
          {"fp8", "fp8", true, "float-quantized"}}) {
      SCOPED_TRACE(fmt::format("{} {} {} {}", architecture, weights, activations, symmetric));
      BuildConfig config;
      config.symmetric = symmetric;
      const Model engine = make_engine(scratch, source, weights, activations, config);
      const fs::path out = scratch.path() / "out";
      export_hf_directory(engine, out, export_format("compressed-tensors"), DType::kF32);
      const Model exported = Model::open(out);
      ASSERT_NE(exported.prequantized(), nullptr);
      EXPECT_EQ(exported.config().raw["quantization_config"]["format"], format);
      expect_same_weights(engine, exported, true);
      EXPECT_EQ(logits(engine), logits(exported));
    }
  }
}

TEST(ForeignFormats, int4_weights_go_to_awq_and_from_there_to_compressed_tensors) {
  const ScratchDirectory scratch;
  const fs::path source = make_model(scratch, "LlamaForCausalLM");
  for (const bool symmetric : {false, true}) {
    BuildConfig config;
    config.symmetric = symmetric;
    const Model engine = make_engine(scratch, source, "int4", "fp16", config);
    const fs::path out = scratch.path() / "awq";
    export_hf_directory(engine, out, export_format("awq"));
    const Model awq = Model::open(out);
    EXPECT_EQ(awq.config().raw["torch_dtype"], "float16");
    expect_same_weights(engine, awq, true);
    export_hf_directory(awq, scratch.path() / "next", export_format("compressed-tensors"));
    expect_same_weights(engine, Model::open(scratch.path() / "next"), true);
  }
}

TEST(ForeignFormats, a_quantized_checkpoint_is_dequantized_as_an_engine_is) {
  const ScratchDirectory scratch;
  const fs::path source = make_model(scratch, "LlamaForCausalLM");
  const Model engine = make_engine(scratch, source, "int4", "fp16", {});
  export_hf_directory(engine, scratch.path() / "a", export_format("compressed-tensors"),
                      DType::kF32);
  export_hf_directory(engine, scratch.path() / "plain", export_format("dequantized"));
  export_hf_directory(Model::open(scratch.path() / "a"), scratch.path() / "again",
                      export_format("dequantized"));
  EXPECT_EQ(read_file(scratch.path() / "plain/model.safetensors"),
            read_file(scratch.path() / "again/model.safetensors"));
  EXPECT_FALSE(Model::open(scratch.path() / "again").prequantized());
}

TEST(ForeignFormats, what_a_format_cannot_express_is_refused_and_nothing_is_left) {
  const ScratchDirectory scratch;
  const fs::path source = make_model(scratch, "LlamaForCausalLM");
  const auto message = [&](const Model& model, const char* format,
                           std::optional<DType> dtype = {}) {
    const fs::path out = scratch.path() / "refused";
    try {
      export_hf_directory(model, out, export_format(format), dtype);
    } catch (const Error& error) {
      EXPECT_FALSE(fs::exists(out));
      return std::string(error.what());
    }
    return std::string("no error");
  };
  using ::testing::AllOf;
  using ::testing::HasSubstr;
  EXPECT_THAT(message(Model::open(source), "awq"), HasSubstr("no linear of a layer is int4"));
  EXPECT_THAT(message(Model::open(source), "compressed-tensors"), HasSubstr("is quantized"));
  EXPECT_THAT(message(make_engine(scratch, source, "int8", "int8", {}), "awq"),
              AllOf(HasSubstr("q_proj"), HasSubstr("compressed-tensors")));
  EXPECT_THAT(message(make_engine(scratch, source, "fp8", "fp8", {}), "awq"),
              AllOf(HasSubstr("q_proj"), HasSubstr("compressed-tensors")));
  BuildConfig wide;
  wide.group_size = 64;  // of 96 inputs the last group is short
  const Model engine = make_engine(scratch, source, "int4", "fp16", wide);
  EXPECT_THAT(message(engine, "awq"), AllOf(HasSubstr("down_proj"), HasSubstr("--group-size")));
  EXPECT_THAT(message(engine, "compressed-tensors"), HasSubstr("96"));
  EXPECT_THAT(message(engine, "compressed-tensors", DType::kBF16), HasSubstr("bf16"));
  EXPECT_THROW(export_format("gguf"), Error);
}

}  // namespace
}  // namespace whit
