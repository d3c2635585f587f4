#include "runtime/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace whit {
namespace {

struct Outcome {
  std::string text;
  bool stopped;
  bool operator==(const Outcome&) const = default;
};

// The definition: the first end of a match, the longest there.
Outcome naive(const std::vector<std::string>& stops, const std::string& text, StopText stop_text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops)
      if (stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    if (longest > 0)
      return {text.substr(0, stop_text == StopText::kKeep ? end : end - longest), true};
  }
  return {text, false};
}

Outcome in_pieces(const std::vector<std::string>& stops, const std::string& text,
                  StopText stop_text, size_t size) {
  StopMatcher matcher(stops, stop_text);
  std::string shown;
  for (size_t at = 0; at < text.size(); at += size)
    shown += matcher.push(std::string_view(text).substr(at, size));
  shown += matcher.finish();
  EXPECT_EQ(matcher.kept_bytes(), static_cast<int64_t>(shown.size()));
  return {shown, matcher.stopped()};
}

TEST(StopMatcherTest, cuts_before_the_stop_string_or_after_it) {
  StopMatcher remove({"END"}), keep({"END"}, StopText::kKeep);
  EXPECT_EQ(remove.push("one ENDtwo"), "one ");
  EXPECT_EQ(keep.push("one ENDtwo"), "one END");
  EXPECT_TRUE(remove.stopped());
  EXPECT_EQ(remove.stop_string(), "END");
  EXPECT_EQ(remove.push("more"), "");
  EXPECT_EQ(remove.finish(), "");
  EXPECT_EQ(remove.kept_bytes(), 4);
  EXPECT_EQ(keep.kept_bytes(), 7);
}

TEST(StopMatcherTest, holds_back_only_what_may_begin_a_stop_string) {
  StopMatcher matcher({"\n\nUser:", "</s>"});
  EXPECT_EQ(matcher.push("Hello"), "Hello");
  EXPECT_EQ(matcher.push(" <"), " ");
  EXPECT_EQ(matcher.push("/"), "");
  EXPECT_EQ(matcher.push("b>\n"), "</b>");
  EXPECT_EQ(matcher.push("\nU"), "");
  EXPECT_EQ(matcher.push("\n\nU"), "\n\nU");
  EXPECT_EQ(matcher.push("ser"), "");
  EXPECT_EQ(matcher.finish(), "\n\nUser");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcherTest, finds_a_match_that_begins_inside_a_failed_one) {
  EXPECT_EQ(in_pieces({"aab"}, "aaab", StopText::kRemove, 1), (Outcome{"a", true}));
  EXPECT_EQ(in_pieces({"abac"}, "ababac", StopText::kRemove, 2), (Outcome{"ab", true}));
}

TEST(StopMatcherTest, no_stop_strings_hold_nothing_back) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.push("text"), "text");
  EXPECT_EQ(matcher.finish(), "");
  EXPECT_FALSE(matcher.stopped());
}

TEST(StopMatcherTest, refuses_empty_and_absurd_stop_strings) {
  EXPECT_THROW(StopMatcher({"a", ""}), Error);
  EXPECT_THROW(StopMatcher(std::vector<std::string>(StopMatcher::kMaxStrings + 1, "a")), Error);
  EXPECT_THROW(StopMatcher({std::string(StopMatcher::kMaxBytes + 1, 'a')}), Error);
  EXPECT_NO_THROW(StopMatcher({std::string(StopMatcher::kMaxBytes, 'a')}));
}

TEST(StopMatcherTest, equals_the_definition_for_any_pieces_of_random_text) {
  std::mt19937 random(1);
  const auto word = [&](size_t longest) {
    std::string text(1 + random() % longest, ' ');
    for (char& c : text) c = static_cast<char>('a' + random() % 2);
    return text;
  };
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> stops(1 + random() % 3);
    for (std::string& stop : stops) stop = word(6);
    const std::string text = word(30);
    const StopText stop_text = round % 2 == 0 ? StopText::kRemove : StopText::kKeep;
    const Outcome want = naive(stops, text, stop_text);
    for (const size_t size : {1, 2, 3, 7, 100})
      EXPECT_EQ(in_pieces(stops, text, stop_text, size), want) << text;
  }
}

}  // namespace
}  // namespace whit
