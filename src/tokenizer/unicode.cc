#include "tokenizer/unicode.h"

#include <utf8proc.h>

namespace whit {
namespace {

// Bytes of the well-formed sequence at the front of text[0, size), or 0. `partial` receives how
// many leading bytes form the start of a well-formed sequence (1 when not even two bytes fit
// together).
size_t sequence_length(const unsigned char* text, size_t size, size_t* partial) {
  const unsigned char lead = text[0];
  *partial = 1;
  if (lead < 0x80) return 1;
  size_t length;
  unsigned char low = 0x80, high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if (i >= size || text[i] < low || text[i] > high) return 0;
    *partial = i + 1;
    low = 0x80;
    high = 0xBF;
  }
  return length;
}

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

}  // namespace

CodePoint code_point_at(std::string_view text, size_t pos) {
  const unsigned char* s = bytes_of(text) + pos;
  if (s[0] < 0x80) return {s[0], 1};
  if (s[0] < 0xE0) return {static_cast<char32_t>((s[0] & 0x1F) << 6 | (s[1] & 0x3F)), 2};
  if (s[0] < 0xF0)
    return {static_cast<char32_t>((s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F)), 3};
  return {static_cast<char32_t>((s[0] & 0x07) << 18 | (s[1] & 0x3F) << 12 | (s[2] & 0x3F) << 6 |
                                (s[3] & 0x3F)),
          4};
}

void append_utf8(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

size_t valid_utf8_prefix(std::string_view text) {
  const unsigned char* s = bytes_of(text);
  size_t pos = 0, partial;
  while (pos < text.size()) {
    if (s[pos] < 0x80) {
      ++pos;
      continue;
    }
    const size_t length = sequence_length(s + pos, text.size() - pos, &partial);
    if (length == 0) break;
    pos += length;
  }
  return pos;
}

size_t incomplete_utf8_suffix(std::string_view text) {
  const unsigned char* s = bytes_of(text);
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const unsigned char* lead = s + text.size() - back;
    if ((*lead & 0xC0) == 0x80) continue;
    if (*lead < 0xC2 || *lead > 0xF4) return 0;
    size_t partial;
    return sequence_length(lead, back, &partial) == 0 && partial == back ? back : 0;
  }
  return 0;
}

std::string lossy_utf8(std::string_view text) {
  const unsigned char* s = bytes_of(text);
  std::string out;
  out.reserve(text.size());
  size_t pos = 0;
  while (true) {
    const size_t valid = valid_utf8_prefix(text.substr(pos));
    out.append(text, pos, valid);
    pos += valid;
    if (pos == text.size()) return out;
    size_t partial;
    sequence_length(s + pos, text.size() - pos, &partial);
    pos += partial;
    out += "\uFFFD";
  }
}

bool is_whitespace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_numeric(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80)
    return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) ||
           (c >= 0x7B && c <= 0x7E);
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool is_alphabetic(char32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_combining_mark(char32_t c) {
  const utf8proc_category_t category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME;
}

void append_lower(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  } else if (c == 0x130) {  // the one unconditional expansion of SpecialCasing.txt's lower column
    out += "i\u0307";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
  }
}

void append_upper(char32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c >= 'a' && c <= 'z' ? c - 32 : c);
  } else if (c == 0xDF) {
    out += "SS";
  } else {
    append_utf8(static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))), out);
  }
}

}  // namespace whit
