#include "api/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "api/calibration_source.h"
#include "base/file.h"
#include "text_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class CalibrationTest : public ::testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& content) {
    const auto path = files_.folder() / name;
    write_file(path, content);
    return path.string();
  }
  CalibrationData data(const std::string& source, int64_t samples, int64_t length = 8) {
    return calibration_data(model_, {.source = source, .samples = samples, .length = length},
                            cpu::Isa::kPortable, pool_);
  }
  std::string refusal(const std::string& source) {
    try {
      data(source, 4);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }

  TextModel files_;
  Model model_ = Model::open(files_.path());
  ThreadPool pool_{1};
};

TEST_F(CalibrationTest, a_mixture_is_written_as_parts_with_weights) {
  EXPECT_EQ(parse_calibration_sources("self"), (std::vector<CalibrationSource>{{"self", 1}}));
  EXPECT_EQ(parse_calibration_sources("a.txt:0.7,b.jsonl:3\nself"),
            (std::vector<CalibrationSource>{{"a.txt", 0.7}, {"b.jsonl", 3}, {"self", 1}}));
  const std::string odd = file("a,b:2", "text");
  EXPECT_EQ(parse_calibration_sources(odd), (std::vector<CalibrationSource>{{odd, 1}}));
  for (const char* wrong : {"", "a,", "a:0", "a:-1", "a:nan", "a:1e9", ":1", "a:x", "a,a:2"})
    EXPECT_THROW(parse_calibration_sources(wrong), Error) << wrong;
}

TEST_F(CalibrationTest, parts_have_samples_by_weight_and_take_turns) {
  const std::string a = file("a.txt", std::string(1000, 'a')),
                    b = file("b.txt", std::string(1000, 'b'));
  const CalibrationData mixed = data(a + ":3," + b + ":1", 16);
  ASSERT_EQ(mixed.samples, 16);
  int64_t of_a = 0;
  for (int64_t i = 0; i < 16; ++i) of_a += mixed.ids[i * 8] == TextModel::kFirstByte + 'a' ? 1 : 0;
  EXPECT_EQ(of_a, 12);
  for (int64_t i = 0; i < 16; i += 4) {
    int64_t here = 0;
    for (int64_t j = i; j < i + 4; ++j)
      here += mixed.ids[j * 8] == TextModel::kFirstByte + 'a' ? 1 : 0;
    EXPECT_EQ(here, 3) << "samples " << i << " to " << i + 3;
  }
  const Json parts = mixed.description()["parts"];
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[1]["samples"], 4);
}

TEST_F(CalibrationTest, a_part_that_is_too_short_is_said) {
  const std::string a = file("a.txt", std::string(1000, 'a')),
                    b = file("b.txt", std::string(20, 'b'));
  const CalibrationData mixed = data(a + "," + b, 16);
  EXPECT_EQ(mixed.samples, 10);
  ASSERT_EQ(mixed.warnings.size(), 1u);
  EXPECT_THAT(mixed.warnings[0], HasSubstr("only 2 of the 8 samples"));
  EXPECT_THAT(refusal(a + "," + file("c.txt", "c")), HasSubstr("--calib-length"));
}

TEST_F(CalibrationTest, lines_are_texts_conversations_or_token_ids) {
  const auto lines = [&](const std::string& content) {
    return read_calibration_tokens(model_, file("lines.jsonl", content));
  };
  const auto bytes = [](const std::string& text) {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(TextModel::kFirstByte + static_cast<unsigned char>(c));
    return ids;
  };
  EXPECT_EQ(lines("{\"text\": \"a\"}\n\n{\"text\": \"b\"}\n"), bytes("a\n\nb\n\n"));
  EXPECT_EQ(lines("{\"ids\": [5, 6]}\n[7]\n{\"token_ids\": [8]}\n{\"input_ids\": []}"),
            (std::vector<int32_t>{5, 6, 7, 8}));
  // The template's words are tokens, a message's are not.
  const std::vector<int32_t> chat =
      lines("{\"messages\": [{\"role\": \"user\", \"content\": \"<|turn|>\"}]}");
  std::vector<int32_t> expected = {TextModel::kTurn};
  for (const int32_t id : bytes("user\n<|turn|>")) expected.push_back(id);
  expected.push_back(TextModel::kEndOfSequence);
  expected.push_back(TextModel::kFirstByte + '\n');
  EXPECT_EQ(chat, expected);
}

TEST_F(CalibrationTest, a_wrong_line_is_named) {
  for (const auto& [line, words] : std::vector<std::pair<std::string, std::string>>{
           {"{\"words\": \"a\"}", "{\"text\": …}"},
           {"{\"text\": 3}", "text"},
           {"{\"ids\": 3}", "list"},
           {"[1.5]", "1.5"},
           {"[-1]", "-1"},
           {"[100000]", "100000"},
           {"{\"messages\": []}", "messages"},
           {"{\"messages\": [{\"content\": \"x\"}]}", "role"},
           {"{\"messages\": [{\"role\": \"user\"}]}", "content"},
           {"{\"messages\": [3]}", ""},
           {"{\"text\": \"a\"", ""},
           {"\"x\"", ""}}) {
    const std::string message = refusal(file("bad.jsonl", "{\"text\": \"good\"}\n" + line + "\n"));
    EXPECT_THAT(message, HasSubstr("bad.jsonl:2")) << line;
    EXPECT_THAT(message, HasSubstr(words)) << line;
  }
}

TEST_F(CalibrationTest, the_key_tells_mixtures_apart) {
  const std::string a = file("a.txt", "aaaa"), b = file("b.txt", "bbbb");
  const auto key = [](const std::string& source) { return calibration_key({.source = source}); };
  EXPECT_NE(key(a + ":2," + b), key(a + "," + b));
  EXPECT_EQ(key(a), key(a));
  const std::string before = key(a);
  file("a.txt", "aaab");
  EXPECT_NE(key(a), before);
}

}  // namespace
}  // namespace whit
