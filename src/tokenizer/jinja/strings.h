// Python's str operations on marked text. Positions are byte offsets of UTF-8; counts are code
// points.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/jinja/text.h"
#include "tokenizer/unicode.h"

namespace whit::jinja {

Text substring(const Text& text, size_t begin, size_t end);
size_t code_points(const Text& text);
// Byte offset of code point `index`, or the text's size.
size_t offset_of(const Text& text, size_t index);
// Byte offsets of all code points, and the text's size.
std::vector<size_t> code_point_offsets(const Text& text);
// The code point at `index` (negative: from the end); empty where there is none.
Text code_point(const Text& text, int64_t index);

// str.isspace() of one character: white space and the separators U+001C to U+001F.
bool is_python_space(char32_t c);
bool is_python_printable(char32_t c);

enum Sides { kLeft = 1, kRight = 2, kBoth = 3 };
// Without characters (null): white space.
Text strip(const Text& text, const Text* characters, Sides sides);

// Never fewer than the parts that split_spaces and split_lines return.
size_t count_space_parts(const Text& text);
size_t count_occurrences(const Text& text, std::string_view part);

// Parts between occurrences of `separator` (not empty), at most `limit` cuts (negative: no limit).
std::vector<Text> split(const Text& text, std::string_view separator, int64_t limit);
std::vector<Text> split_right(const Text& text, std::string_view separator, int64_t limit);
// Parts between runs of white space, none of them empty.
std::vector<Text> split_spaces(const Text& text, int64_t limit);
std::vector<Text> split_spaces_right(const Text& text, int64_t limit);
std::vector<Text> split_lines(const Text& text, bool keep_ends);

Text replace(const Text& text, std::string_view from, const Text& to, int64_t limit);

enum class Case { kUpper, kLower, kTitle, kCapitalize, kJinjaTitle };
Text change_case(const Text& text, Case to);

// repr() of a string.
void append_quoted(const Text& text, TextBuilder& out);
// HTML escapes of & < > " '.
void append_escaped(const Text& text, TextBuilder& out);

}  // namespace whit::jinja
