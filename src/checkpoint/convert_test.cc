#include <cstdlib>

#include "base/file.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::TemporaryDirectory;

std::filesystem::path write_gguf(const TemporaryDirectory& directory, float first) {
  auto gguf = test::tiny_gguf();
  gguf.string("tokenizer.ggml.model", "gpt2")
      .string("tokenizer.ggml.pre", "gpt-2")
      .strings("tokenizer.ggml.tokens", {"a", "b", "ab"})
      .strings("tokenizer.ggml.merges", {"a b"})
      .f32_tensor("output_norm.weight", {4}, {first, 1, 2, 3});
  return directory.write("m.gguf", gguf.build());
}

std::vector<float> values(const Checkpoint& checkpoint, const char* name) {
  const Tensor tensor = checkpoint.load_f32(name);
  return {tensor.f32().begin(), tensor.f32().end()};
}

TEST(WriteHfDirectory, the_written_directory_reads_as_the_same_model) {
  const TemporaryDirectory directory;
  const Checkpoint source = Checkpoint::open(write_gguf(directory, 0.1f));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    write_hf_directory(source, directory / "out", dtype);
    const Checkpoint result = Checkpoint::open(directory / "out");
    EXPECT_EQ(result.names(), source.names());
    EXPECT_EQ(values(result, "model.embed_tokens.weight"),
              values(source, "model.embed_tokens.weight"));
    const float expected = dtype == DType::kF32   ? 0.1f
                           : dtype == DType::kF16 ? f16_to_f32(f32_to_f16(0.1f))
                                                  : bf16_to_f32(f32_to_bf16(0.1f));
    EXPECT_EQ(values(result, "model.norm.weight")[0], expected);
    EXPECT_EQ(result.get("model.norm.weight").type, storage_type_of(dtype));
    EXPECT_EQ(result.config()["torch_dtype"], dtype == DType::kF32   ? "float32"
                                              : dtype == DType::kF16 ? "float16"
                                                                     : "bfloat16");
    EXPECT_EQ(result.tokenizer_json(), source.tokenizer_json());
    EXPECT_EQ(result.tokenizer_config(), source.tokenizer_config());
  }
}

TEST(WriteHfDirectory, a_value_that_f16_cannot_hold_leaves_nothing_behind) {
  const TemporaryDirectory directory;
  const Checkpoint source = Checkpoint::open(write_gguf(directory, 70000.0f));
  expect_error(ErrorKind::kInvalidData, {"model.norm.weight", "70000", "f16", "bf16"},
               [&] { write_hf_directory(source, directory / "out", DType::kF16); });
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path()), {}),
            1);  // the source
  EXPECT_NO_THROW(write_hf_directory(source, directory / "out", DType::kBF16));
}

TEST(WriteHfDirectory, replaces_only_what_it_made) {
  const TemporaryDirectory directory;
  const Checkpoint source = Checkpoint::open(write_gguf(directory, 0.1f));
  write_hf_directory(source, directory / "out", DType::kF32);
  std::ofstream(directory / "out/notes.txt") << "mine";
  expect_error(ErrorKind::kInvalidArgument, {"out"},
               [&] { write_hf_directory(source, directory / "out", DType::kF32); });
  EXPECT_EQ(read_file(directory / "out/notes.txt"), "mine");
  expect_error(ErrorKind::kInvalidArgument, {},
               [&] { write_hf_directory(source, directory.path(), DType::kF32); });
}

TEST(WriteHfDirectory, refuses_types_that_are_no_floats) {
  const TemporaryDirectory directory;
  const Checkpoint source = Checkpoint::open(write_gguf(directory, 0.1f));
  expect_error(ErrorKind::kInvalidArgument, {"i8"},
               [&] { write_hf_directory(source, directory / "out", DType::kI8); });
}

// The real model against the directory that an independent converter made of it (PyPI gguf's
// dequantisation).
TEST(WriteHfDirectory, smollm2_equals_the_independent_conversion_bit_by_bit_slow) {
  const char* gguf = std::getenv("WHIT_SMOL_GGUF");
  const char* reference = std::getenv("WHIT_SMOL_HF");
  if (gguf == nullptr || reference == nullptr)
    GTEST_SKIP() << "WHIT_SMOL_GGUF and WHIT_SMOL_HF name no SmolLM2 GGUF file and its f32 Hugging "
                    "Face directory";
  const Checkpoint ours = Checkpoint::open(gguf), theirs = Checkpoint::open(reference);
  ASSERT_EQ(ours.names().size(), theirs.names().size());
  for (const std::string& name : ours.names()) {
    const Tensor a = ours.load_f32(name), b = theirs.load_f32(name, a.shape(), "the GGUF file");
    ASSERT_EQ(std::memcmp(a.data<void>(), b.data<void>(), a.bytes()), 0) << name;
  }
  for (const char* key :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "rms_norm_eps", "rope_theta",
        "tie_word_embeddings", "eos_token_id", "max_position_embeddings"})
    EXPECT_EQ(ours.config()[key], theirs.config()[key]) << key;
  using SortedJson = nlohmann::json;  // ordered_json searches 49152 keys linearly
  const SortedJson a = SortedJson::parse(ours.tokenizer_json()),
                   b = SortedJson::parse(theirs.tokenizer_json());
  for (const char* key :
       {"added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"})
    EXPECT_EQ(a[key], b[key]) << key;
  for (const auto& [key, value] : b["model"].items()) EXPECT_EQ(a["model"][key], value) << key;
  EXPECT_EQ(ours.tokenizer_config()["chat_template"], theirs.tokenizer_config()["chat_template"]);
}

}  // namespace
}  // namespace whit
