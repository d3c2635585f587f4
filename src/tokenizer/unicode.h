// UTF-8 and the Unicode character classes that tokenizers ask for.
//
// Classes follow the definitions of the Rust standard library, which Hugging Face tokenizers are
// written in: whitespace is the White_Space property, numeric the general categories Nd, Nl and No.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace whit {

// The code point that starts at text[pos], and its length; `text` must be valid UTF-8, pos < size.
struct CodePoint {
  char32_t value;
  uint32_t bytes;
};
CodePoint code_point_at(std::string_view text, size_t pos);

void append_utf8(char32_t code_point, std::string& out);

// Length of the longest prefix that is valid UTF-8 (surrogates and overlong forms are not).
size_t valid_utf8_prefix(std::string_view text);

// How many bytes at the end of `text` begin a sequence that more bytes could complete: 0 to 3.
size_t incomplete_utf8_suffix(std::string_view text);

// `text` with every maximal ill-formed part replaced by U+FFFD (Unicode 15, §3.9, table 3-8).
std::string lossy_utf8(std::string_view text);

bool is_whitespace(char32_t c);
bool is_numeric(char32_t c);
bool is_punctuation(char32_t c);     // ASCII punctuation and symbols, or general category P*
bool is_alphabetic(char32_t c);      // general category L*
bool is_combining_mark(char32_t c);  // general category M*
// One-to-many lower case of one character, without context (as Rust's char::to_lowercase).
void append_lower(char32_t c, std::string& out);
void append_upper(char32_t c, std::string& out);

}  // namespace whit
