#include "tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "base/json.h"
#include "tokenizer/normalizer.h"

namespace whit {
namespace {

TEST(Unicode, finds_where_utf8_goes_wrong) {
  EXPECT_EQ(valid_utf8_prefix("aé世😀"), std::string_view("aé世😀").size());
  for (const char* bad : {"\x80", "\xC0\x80", "\xE0\x80\x80", "\xED\xA0\x80", "\xF0\x80\x80\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\xC3", "\xE4\xB8"})
    EXPECT_EQ(valid_utf8_prefix(bad), 0u) << Json(lossy_utf8(bad));
}

TEST(Unicode, replaces_each_maximal_ill_formed_part) {
  // The example of the Unicode Standard, table 3-8.
  EXPECT_EQ(lossy_utf8("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
}

TEST(Unicode, holds_back_only_what_can_still_become_a_character) {
  EXPECT_EQ(incomplete_utf8_suffix("a\xE4\xB8"), 2u);
  EXPECT_EQ(incomplete_utf8_suffix("a\xF0\x9F\x98"), 3u);
  EXPECT_EQ(incomplete_utf8_suffix("\xC3"), 1u);
  EXPECT_EQ(incomplete_utf8_suffix("é"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix("\xED\xA0"), 0u);  // a surrogate: never completed
  EXPECT_EQ(incomplete_utf8_suffix("\x80\x80"), 0u);
  EXPECT_EQ(incomplete_utf8_suffix(""), 0u);
}

TEST(Unicode, round_trips_every_code_point) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_utf8(c, text);
    const CodePoint read = code_point_at(text, 0);
    ASSERT_EQ(read.value, c);
    ASSERT_EQ(read.bytes, text.size());
    ASSERT_EQ(valid_utf8_prefix(text), text.size());
  }
}

TEST(Normalizer, sorts_a_long_run_of_combining_marks_quickly) {
  // Two marks of different class in the wrong order, a hundred thousand times over.
  std::string text = "a";
  for (int i = 0; i < 100'000; ++i) text += "\u0301\u0316";
  const Normalizer nfd(Json{{"type", "NFD"}}, "t");
  MarkedText marked{text, {}};
  nfd.apply(marked);
  EXPECT_TRUE(marked.text.starts_with("a\u0316\u0316"));
  EXPECT_EQ(marked.text.size(), text.size());
}

}  // namespace
}  // namespace whit
