#include "base/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json_bounds.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::string& text) {
  try {
    parse_json(text, "a.json");
    return "accepted";
  } catch (const Error& error) {
    return error.what();
  }
}

std::string object_of(int members) {
  std::string text = "{";
  for (int i = 0; i < members; ++i) text += fmt::format("{}\"{:x}\":0", i == 0 ? "" : ",", i);
  return text + "}";
}

// Without a bound this takes minutes: each key is compared with those before it.
TEST(JsonTest, an_object_of_very_many_members_is_refused_ahead_of_parsing) {
  EXPECT_THAT(refusal(object_of(400'000)), HasSubstr("a.json: the JSON has too many members"));
  EXPECT_EQ(refusal(object_of(1000)), "accepted");
  std::string many = "[";
  for (int i = 0; i < 1000; ++i) many += object_of(10) + ",";
  EXPECT_EQ(refusal(many + "0]"), "accepted") << "members of one object count, not of all";
}

TEST(JsonTest, bounds_are_told_by_what_lies_outside_of_strings) {
  const JsonBounds bounds{.levels = 2, .comparisons = 3};
  EXPECT_EQ(json_excess(R"([{"a{[[":"::\"::","b":1,"c":2}])", bounds), "");
  EXPECT_THAT(json_excess(R"({"a":1,"b":1,"c":2,"d":3})", bounds), HasSubstr("too many members"));
  EXPECT_THAT(json_excess("[[[", bounds), HasSubstr("deeper than 2 levels"));
  EXPECT_EQ(json_excess("]]][[", bounds), "");
  EXPECT_EQ(json_excess("::::", bounds), "");
  const std::string key = '"' + std::string(200, 'k') + '"';
  EXPECT_NE(json_excess("{" + key + ":0," + key + ":0}", bounds), "") << "long keys cost more";
}

TEST(JsonTest, a_message_does_not_repeat_the_file) {
  const std::string message = refusal("[\"" + std::string(100'000, 'x'));
  EXPECT_THAT(message, HasSubstr("a.json: not valid JSON"));
  EXPECT_LT(message.size(), 1000u);
}

}  // namespace
}  // namespace whit
