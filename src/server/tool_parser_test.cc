#include "server/tool_parser.h"

#include <gtest/gtest.h>

namespace whit {
namespace {

// All that comes of a text given in pieces of `size` bytes.
ToolCallParser::Found parse(const std::string& text, size_t size) {
  ToolCallParser parser;
  ToolCallParser::Found all;
  const auto add = [&](ToolCallParser::Found found) {
    all.text += found.text;
    all.calls.insert(all.calls.end(), found.calls.begin(), found.calls.end());
  };
  for (size_t at = 0; at < text.size(); at += size) add(parser.push(text.substr(at, size)));
  add(parser.finish());
  return all;
}

TEST(ToolCallParserTest, calls_are_taken_out_however_the_text_is_cut) {
  const std::string text =
      "Let me see. <tool_call>\n{\"name\": \"add\", \"arguments\": {\"x\": [1, 2]}}\n</tool_call>"
      "<tool_call>{\"name\": \"stop\", \"parameters\": {}}</tool_call> done";
  for (size_t size = 1; size <= text.size(); ++size) {
    const ToolCallParser::Found found = parse(text, size);
    ASSERT_EQ(found.calls.size(), 2u) << size;
    EXPECT_EQ(found.calls[0].name, "add");
    EXPECT_EQ(found.calls[0].arguments, "{\"x\":[1,2]}");
    EXPECT_EQ(found.calls[1].name, "stop");
    EXPECT_EQ(found.text, "Let me see.  done");
  }
}

TEST(ToolCallParserTest, an_answer_that_is_one_object_is_a_call) {
  for (const size_t size : {1u, 5u, 100u}) {
    const ToolCallParser::Found found =
        parse(" {\"name\": \"add\", \"parameters\": {\"x\": 1}}", size);
    ASSERT_EQ(found.calls.size(), 1u);
    EXPECT_EQ(found.text, "");
  }
}

TEST(ToolCallParserTest, what_is_no_call_stays_text) {
  for (const std::string text :
       {"plain <tool and <tool_cal", "{\"a\": 1}", "<tool_call>{broken</tool_call> x",
        "<tool_call>{\"name\": 5, \"arguments\": {}}</tool_call>", "x <tool_call>{\"name\": \"a\"",
        "x <tool_call>", "", "  "})
    for (const size_t size : {1u, 3u, 100u}) {
      const ToolCallParser::Found found = parse(text, size);
      EXPECT_TRUE(found.calls.empty()) << text;
      EXPECT_EQ(found.text, text);
    }
}

// Whoever writes out or copies a value recurses by its depth.
TEST(ToolCallParserTest, a_call_nested_without_measure_stays_text) {
  constexpr int kDepth = 1'000'000;
  const std::string text =
      "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": " + std::string(kDepth, '[') +
      std::string(kDepth, ']') + "}}</tool_call>";
  const ToolCallParser::Found found = parse(text, text.size());
  EXPECT_TRUE(found.calls.empty());
  EXPECT_TRUE(found.text == text);
}

}  // namespace
}  // namespace whit
