#include "tokenizer/tokenizer_config.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace whit {
namespace {

TEST(TokenizerConfig, reads_tokens_as_strings_or_objects) {
  const auto config = TokenizerConfig::from_json(
      R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
          "add_bos_token": true, "chat_template": "x"})",
      "tokenizer_config.json");
  EXPECT_EQ(config.bos_token, "<s>");
  EXPECT_EQ(config.eos_token, "</s>");
  EXPECT_EQ(config.pad_token, std::nullopt);
  EXPECT_TRUE(config.add_bos_token);
  EXPECT_FALSE(config.add_eos_token);
  ASSERT_NE(config.chat_template(false), nullptr);
  EXPECT_EQ(*config.chat_template(true), "x");
  EXPECT_EQ(config.chat_template(true, "rag"), nullptr);
}

TEST(TokenizerConfig, chooses_among_named_templates) {
  const auto config = TokenizerConfig::from_json(
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})",
      "c");
  EXPECT_EQ(*config.chat_template(false), "d");
  EXPECT_EQ(*config.chat_template(true), "t");
  EXPECT_EQ(*config.chat_template(true, "default"), "d");
}

TEST(TokenizerConfig, a_template_file_wins) {
  const auto config = TokenizerConfig::from_json(R"({"chat_template": "old"})", "c", "new");
  EXPECT_EQ(*config.chat_template(false), "new");
  EXPECT_EQ(TokenizerConfig::from_json("{}", "c").chat_template(false), nullptr);
}

TEST(TokenizerConfig, refuses_what_is_not_a_template) {
  EXPECT_THROW(TokenizerConfig::from_json(R"({"chat_template": 5})", "c"), Error);
  EXPECT_THROW(TokenizerConfig::from_json(R"({"chat_template": ["x"]})", "c"), Error);
  EXPECT_THROW(TokenizerConfig::from_json(R"({"eos_token": 5})", "c"), Error);
  EXPECT_THROW(TokenizerConfig::from_json("[]", "c"), Error);
}

}  // namespace
}  // namespace whit
