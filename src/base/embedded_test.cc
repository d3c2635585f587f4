#include "base/embedded.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/json.h"

namespace whit {
namespace {

std::string data_file(const std::string& name) {
  return read_file(std::filesystem::path(WHIT_SOURCE_DIR) / "data" / name);
}

TEST(Embedded, holds_the_files_of_data_byte_for_byte) {
  EXPECT_EQ(embedded::calib_prompts(), data_file("calib/prompts.jsonl"));
  EXPECT_EQ(embedded::eval_text(), data_file("eval/prose.txt") + data_file("eval/code.txt") +
                                       data_file("eval/dialogue.txt"));
}

TEST(Embedded, every_calibration_prompt_is_a_text_and_a_chat_flag) {
  std::string_view rest = embedded::calib_prompts();
  size_t count = 0;
  while (!rest.empty()) {
    const size_t end = rest.find('\n');
    ASSERT_NE(end, std::string_view::npos) << "the last line has no newline";
    const Json prompt = parse_json(rest.substr(0, end), "prompts.jsonl");
    EXPECT_FALSE(json_get<std::string>(prompt, "prompt", "prompts.jsonl").empty());
    json_get<bool>(prompt, "chat", "prompts.jsonl");
    rest.remove_prefix(end + 1);
    ++count;
  }
  EXPECT_GE(count, 128u);
}

}  // namespace
}  // namespace whit
