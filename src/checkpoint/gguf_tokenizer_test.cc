#include "checkpoint/gguf_tokenizer.h"

#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::GgufBuilder;

struct Tokenizer {
  explicit Tokenizer(const GgufBuilder& gguf)
      : bytes(gguf.build()), file(test::bytes_of(bytes), "m.gguf") {}
  Json json() const { return parse_json(tokenizer_json_from_gguf(file), "tokenizer.json"); }
  Json config() const { return tokenizer_config_from_gguf(file); }
  std::string bytes;
  GgufFile file;
};

GgufBuilder byte_level(const std::string& pre) {
  GgufBuilder gguf;
  gguf.string("tokenizer.ggml.model", "gpt2")
      .strings("tokenizer.ggml.tokens",
               {"<|end|>", "a", "b", "ab", "\"\\\n", "Ġ", "<tool>", "[PAD]"})
      .i32s("tokenizer.ggml.token_type", {3, 1, 1, 1, 1, 1, 4, 5})
      .strings("tokenizer.ggml.merges", {"a b"})
      .u32("tokenizer.ggml.bos_token_id", 0)
      .u32("tokenizer.ggml.eos_token_id", 0);
  if (!pre.empty()) gguf.string("tokenizer.ggml.pre", pre);
  return gguf;
}

TEST(GgufTokenizer, keeps_vocabulary_merges_and_added_tokens) {
  const Json json = Tokenizer(byte_level("gpt-2")).json();
  const Json& model = json["model"];
  EXPECT_EQ(
      model["vocab"],
      (Json{
          {"<|end|>", 0}, {"a", 1}, {"b", 2}, {"ab", 3}, {"\"\\\n", 4}, {"Ġ", 5}, {"<tool>", 6}}));
  EXPECT_EQ(model["merges"], Json::array({Json::array({"a", "b"})}));
  ASSERT_EQ(json["added_tokens"].size(), 2u);
  EXPECT_EQ(json["added_tokens"][0]["special"], true);
  EXPECT_EQ(json["added_tokens"][1]["content"], "<tool>");
  EXPECT_EQ(json["added_tokens"][1]["id"], 6);
  EXPECT_EQ(json["added_tokens"][1]["special"], false);
  EXPECT_TRUE(json["post_processor"].is_null());
}

TEST(GgufTokenizer, chooses_the_pre_tokenizer_by_its_name) {
  const auto pre = [](const std::string& name) {
    return Tokenizer(byte_level(name)).json()["pre_tokenizer"];
  };
  EXPECT_EQ(pre("gpt-2")["type"], "ByteLevel");
  EXPECT_EQ(pre("gpt-2")["use_regex"], true);
  EXPECT_EQ(pre("smollm")["pretokenizers"][0]["type"], "Digits");
  EXPECT_EQ(pre("smollm")["pretokenizers"][1]["use_regex"], true);
  EXPECT_EQ(pre("llama-bpe")["pretokenizers"][0]["behavior"], "Isolated");
  EXPECT_NE(pre("llama-bpe")["pretokenizers"][0]["pattern"]["Regex"].dump().find("{1,3}"),
            std::string::npos);
  EXPECT_EQ(pre("llama-bpe")["pretokenizers"][1]["use_regex"], false);
  EXPECT_EQ(pre("qwen2")["pretokenizers"].size(), 2u);
  EXPECT_EQ(pre("default")["pretokenizers"].size(), 5u);
  EXPECT_EQ(pre(""), pre("default"));
  EXPECT_EQ(
      Tokenizer(byte_level("").string("general.architecture", "qwen2")).json()["pre_tokenizer"],
      pre("qwen2"));
  EXPECT_EQ(Tokenizer(byte_level("qwen2")).json()["normalizer"], (Json{{"type", "NFC"}}));
  EXPECT_EQ(Tokenizer(byte_level("llama-bpe")).json()["model"]["ignore_merges"], true);
  expect_error(ErrorKind::kUnsupported, {"m.gguf", "\"viking\"", "Hugging Face directory"},
               [&] { pre("viking"); });
}

TEST(GgufTokenizer, puts_begin_and_end_tokens_where_the_file_says) {
  const auto processor = [](const GgufBuilder& gguf) {
    return Tokenizer(gguf).json()["post_processor"];
  };
  const Json bos = processor(byte_level("llama-bpe"));
  EXPECT_EQ(bos["type"], "TemplateProcessing");
  EXPECT_EQ(
      bos["single"].dump(),
      R"([{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}])");
  EXPECT_EQ(bos["special_tokens"].dump(),
            R"({"<|end|>":{"id":"<|end|>","ids":[0],"tokens":["<|end|>"]}})");
  EXPECT_TRUE(
      processor(byte_level("llama-bpe").boolean("tokenizer.ggml.add_bos_token", false)).is_null());
  EXPECT_EQ(
      processor(byte_level("gpt-2").boolean("tokenizer.ggml.add_eos_token", true))["single"].size(),
      2u);
}

TEST(GgufTokenizer, writes_the_tokenizer_config) {
  const Json config =
      Tokenizer(byte_level("gpt-2").string("tokenizer.chat_template", "{{ x }}")).config();
  EXPECT_EQ(config["eos_token"], "<|end|>");
  EXPECT_EQ(config["chat_template"], "{{ x }}");
  EXPECT_EQ(config["add_bos_token"], false);
  EXPECT_EQ(config["added_tokens_decoder"]["6"]["content"], "<tool>");
  EXPECT_FALSE(config.contains("unk_token"));
}

TEST(GgufTokenizer, refuses_vocabularies_that_contradict_themselves) {
  const auto refuses = [](ErrorKind kind, const std::vector<std::string>& parts,
                          const GgufBuilder& gguf) {
    const Tokenizer tokenizer(gguf);
    expect_error(kind, parts, [&] { tokenizer.json(); });
  };
  const auto vocabulary = [](const std::vector<std::string>& tokens) {
    GgufBuilder gguf;
    return gguf.string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", tokens);
  };
  refuses(ErrorKind::kUnsupported, {"m.gguf", "\"bert\""},
          GgufBuilder().string("tokenizer.ggml.model", "bert"));
  refuses(ErrorKind::kNotFound, {"tokenizer.ggml.tokens"},
          GgufBuilder().string("tokenizer.ggml.model", "gpt2"));
  refuses(ErrorKind::kNotFound, {"tokenizer.ggml.merges"}, vocabulary({"a"}));
  refuses(ErrorKind::kInvalidData, {"tokens[1]", "UTF-8"}, vocabulary({"a", "\xed\xa0\x80"}));
  for (const char* merge : {"a", "a b", "a  a", " a", "a ", "a a a"})
    refuses(ErrorKind::kInvalidData, {"merge 0"},
            vocabulary({"a", "c"}).strings("tokenizer.ggml.merges", {merge}));
  refuses(ErrorKind::kInvalidData, {"1 tokens", "2 token types"},
          vocabulary({"a"}).i32s("tokenizer.ggml.token_type", {1, 1}));
  const Tokenizer out_of_range(vocabulary({"a"}).u32("tokenizer.ggml.eos_token_id", 1));
  expect_error(ErrorKind::kInvalidData, {"eos_token_id = 1", "vocabulary of 1"},
               [&] { out_of_range.config(); });
}

TEST(GgufTokenizer, the_last_of_equal_tokens_counts) {
  const Json json = Tokenizer(GgufBuilder()
                                  .string("tokenizer.ggml.model", "gpt2")
                                  .string("tokenizer.ggml.pre", "gpt-2")
                                  .strings("tokenizer.ggml.tokens", {"a", "a"})
                                  .strings("tokenizer.ggml.merges", {}))
                        .json();
  EXPECT_EQ(json["model"]["vocab"], (Json{{"a", 1}}));
}

GgufBuilder sentence_piece() {
  GgufBuilder gguf;
  return gguf.string("tokenizer.ggml.model", "llama")
      .strings("tokenizer.ggml.tokens",
               {"<unk>", "<s>", "<0x41>", "▁", "a", "b", "▁a", "ab", "▁ab"})
      .i32s("tokenizer.ggml.token_type", {2, 3, 6, 1, 1, 1, 1, 1, 1})
      .u32("tokenizer.ggml.unknown_token_id", 0)
      .u32("tokenizer.ggml.bos_token_id", 1);
}

TEST(GgufTokenizer, derives_the_merges_of_sentence_piece_from_scores) {
  const Json json =
      Tokenizer(sentence_piece().f32s("tokenizer.ggml.scores", {0, 0, 0, -9, -8, -7, -2, -1, -3}))
          .json();
  const Json& model = json["model"];
  EXPECT_EQ(model["merges"].dump(), R"([["a","b"],["▁","a"],["▁a","b"],["▁","ab"]])");
  EXPECT_EQ(model["byte_fallback"], true);
  EXPECT_EQ(model["unk_token"], "<unk>");
  EXPECT_EQ(json["normalizer"]["normalizers"].size(), 2u);
  EXPECT_EQ(json["decoder"]["decoders"].size(), 4u);
  EXPECT_EQ(json["post_processor"]["single"].size(), 2u);
}

TEST(GgufTokenizer, refuses_sentence_piece_without_usable_scores) {
  const Tokenizer without(sentence_piece());
  expect_error(ErrorKind::kUnsupported, {"m.gguf", "scores", "Hugging Face"},
               [&] { without.json(); });
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Tokenizer broken(
      sentence_piece().f32s("tokenizer.ggml.scores", {0, 0, 0, nan, -8, -7, -2, -1, -3}));
  expect_error(ErrorKind::kInvalidData, {"score of token 3"}, [&] { broken.json(); });
}

}  // namespace
}  // namespace whit
