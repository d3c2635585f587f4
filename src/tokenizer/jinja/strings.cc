#include "tokenizer/jinja/strings.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>

namespace whit::jinja {
namespace {

// Start of the character before byte `end` > 0.
size_t previous(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

bool is_cased(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL ||
         category == UTF8PROC_CATEGORY_LT;
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

// Where Jinja's title filter begins a word: after white space or one of -([{<.
bool begins_word(char32_t before) {
  return is_python_space(before) || before == '-' || before == '(' || before == '[' ||
         before == '{' || before == '<';
}

}  // namespace

Text substring(const Text& text, size_t begin, size_t end) {
  TextBuilder out;
  out.append(text, begin, end);
  Text result = out.take();
  result.markup = text.markup;
  return result;
}

size_t code_points(const Text& text) {
  return static_cast<size_t>(std::count_if(text.bytes.begin(), text.bytes.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

size_t offset_of(const Text& text, size_t index) {
  size_t pos = 0;
  for (; pos < text.size() && index > 0; --index) pos += code_point_at(text.bytes, pos).bytes;
  return pos;
}

std::vector<size_t> code_point_offsets(const Text& text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() + 1);
  for (size_t i = 0; i < text.size(); ++i)
    if ((static_cast<unsigned char>(text.bytes[i]) & 0xC0) != 0x80) offsets.push_back(i);
  offsets.push_back(text.size());
  return offsets;
}

Text code_point(const Text& text, int64_t index) {
  size_t pos = text.size();
  if (index >= 0) pos = offset_of(text, static_cast<size_t>(index));
  for (; index < 0; ++index) {
    if (pos == 0) return {};
    pos = previous(text.bytes, pos);
  }
  if (pos >= text.size()) return {};
  return substring(text, pos, pos + code_point_at(text.bytes, pos).bytes);
}

bool is_python_space(char32_t c) { return is_whitespace(c) || (c >= 0x1C && c <= 0x1F); }

bool is_python_printable(char32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

Text strip(const Text& text, const Text* characters, Sides sides) {
  const auto strips = [&](size_t pos) {
    const CodePoint c = code_point_at(text.bytes, pos);
    if (!characters) return is_python_space(c.value);
    for (size_t i = 0; i < characters->size();) {
      const CodePoint wanted = code_point_at(characters->bytes, i);
      if (wanted.value == c.value) return true;
      i += wanted.bytes;
    }
    return false;
  };
  size_t begin = 0, end = text.size();
  if (sides & kLeft)
    while (begin < end && strips(begin)) begin += code_point_at(text.bytes, begin).bytes;
  if (sides & kRight)
    while (end > begin && strips(previous(text.bytes, end))) end = previous(text.bytes, end);
  return substring(text, begin, end);
}

size_t count_space_parts(const Text& text) {
  // Control characters, the space, and the lead bytes of every other white-space character.
  return 1 + static_cast<size_t>(std::count_if(text.bytes.begin(), text.bytes.end(), [](char c) {
           const unsigned char byte = static_cast<unsigned char>(c);
           return byte <= 0x20 || byte == 0xC2 || (byte >= 0xE1 && byte <= 0xE3);
         }));
}

size_t count_occurrences(const Text& text, std::string_view part) {
  if (part.empty()) return code_points(text) + 1;
  size_t count = 0;
  for (size_t pos = 0; (pos = text.bytes.find(part, pos)) != std::string::npos; pos += part.size())
    ++count;
  return count;
}

std::vector<Text> split(const Text& text, std::string_view separator, int64_t limit) {
  std::vector<Text> parts;
  size_t begin = 0;
  for (; limit != 0; --limit) {
    const size_t found = text.bytes.find(separator, begin);
    if (found == std::string::npos) break;
    parts.push_back(substring(text, begin, found));
    begin = found + separator.size();
  }
  parts.push_back(substring(text, begin, text.size()));
  return parts;
}

std::vector<Text> split_right(const Text& text, std::string_view separator, int64_t limit) {
  std::vector<Text> parts;
  size_t end = text.size();
  for (; limit != 0 && end >= separator.size(); --limit) {
    const size_t found = text.bytes.rfind(separator, end - separator.size());
    if (found == std::string::npos) break;
    parts.push_back(substring(text, found + separator.size(), end));
    end = found;
  }
  parts.push_back(substring(text, 0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> split_spaces(const Text& text, int64_t limit) {
  std::vector<Text> parts;
  size_t pos = 0;
  while (true) {
    while (pos < text.size() && is_python_space(code_point_at(text.bytes, pos).value))
      pos += code_point_at(text.bytes, pos).bytes;
    if (pos >= text.size()) return parts;
    if (limit == 0) {
      parts.push_back(substring(text, pos, text.size()));
      return parts;
    }
    --limit;
    const size_t begin = pos;
    while (pos < text.size() && !is_python_space(code_point_at(text.bytes, pos).value))
      pos += code_point_at(text.bytes, pos).bytes;
    parts.push_back(substring(text, begin, pos));
  }
}

std::vector<Text> split_spaces_right(const Text& text, int64_t limit) {
  std::vector<Text> parts;
  size_t pos = text.size();
  const auto space_before = [&] {
    return is_python_space(code_point_at(text.bytes, previous(text.bytes, pos)).value);
  };
  while (true) {
    while (pos > 0 && space_before()) pos = previous(text.bytes, pos);
    if (pos == 0) break;
    if (limit == 0) {
      parts.push_back(substring(text, 0, pos));
      break;
    }
    --limit;
    const size_t end = pos;
    while (pos > 0 && !space_before()) pos = previous(text.bytes, pos);
    parts.push_back(substring(text, pos, end));
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Text> split_lines(const Text& text, bool keep_ends) {
  std::vector<Text> lines;
  size_t begin = 0;
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text.bytes, pos);
    if (!is_line_end(c.value)) {
      pos += c.bytes;
      continue;
    }
    size_t end = pos + c.bytes;
    if (c.value == '\r' && end < text.size() && text.bytes[end] == '\n') ++end;
    lines.push_back(substring(text, begin, keep_ends ? end : pos));
    begin = pos = end;
  }
  if (begin < text.size()) lines.push_back(substring(text, begin, text.size()));
  return lines;
}

Text replace(const Text& text, std::string_view from, const Text& to, int64_t limit) {
  TextBuilder out;
  size_t begin = 0;
  if (from.empty()) {  // before every character and at the end
    for (; limit != 0; --limit) {
      out.append(to);
      if (begin >= text.size()) return out.take();
      const size_t end = begin + code_point_at(text.bytes, begin).bytes;
      out.append(text, begin, end);
      begin = end;
    }
  }
  for (; limit != 0; --limit) {
    const size_t found = text.bytes.find(from, begin);
    if (found == std::string::npos) break;
    out.append(text, begin, found);
    out.append(to);
    begin = found + from.size();
  }
  out.append(text, begin, text.size());
  return out.take();
}

Text change_case(const Text& text, Case to) {
  TextBuilder out;
  std::string mapped;
  char32_t before = ' ';
  bool previous_cased = false, at_start = true;
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text.bytes, pos);
    const bool upper = to == Case::kUpper || (to == Case::kTitle && !previous_cased) ||
                       (to == Case::kCapitalize && at_start) ||
                       (to == Case::kJinjaTitle && begins_word(before));
    mapped.clear();
    if (upper)
      append_upper(c.value, mapped);
    else
      append_lower(c.value, mapped);
    out.append(mapped, text.marked_at(pos));
    previous_cased = is_cased(c.value);
    before = c.value;
    at_start = false;
    pos += c.bytes;
  }
  return out.take();
}

void append_quoted(const Text& text, TextBuilder& out) {
  const bool double_quotes =
      text.bytes.find('\'') != std::string::npos && text.bytes.find('"') == std::string::npos;
  const char quote = double_quotes ? '"' : '\'';
  out.append(std::string_view(&quote, 1));
  std::string escaped;
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text.bytes, pos);
    escaped.clear();
    if (c.value == '\\' || c.value == static_cast<char32_t>(quote)) {
      escaped = {'\\', static_cast<char>(c.value)};
    } else if (c.value == '\n') {
      escaped = "\\n";
    } else if (c.value == '\r') {
      escaped = "\\r";
    } else if (c.value == '\t') {
      escaped = "\\t";
    } else if (!is_python_printable(c.value)) {
      const uint32_t code = c.value;
      escaped = code < 0x100     ? fmt::format("\\x{:02x}", code)
                : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                                 : fmt::format("\\U{:08x}", code);
    }
    if (escaped.empty())
      out.append(text, pos, pos + c.bytes);
    else
      out.append(escaped, text.marked_at(pos));
    pos += c.bytes;
  }
  out.append(std::string_view(&quote, 1));
}

void append_escaped(const Text& text, TextBuilder& out) {
  for (size_t pos = 0; pos < text.size(); ++pos) {
    const char c = text.bytes[pos];
    const std::string_view escape = c == '&'    ? "&amp;"
                                    : c == '<'  ? "&lt;"
                                    : c == '>'  ? "&gt;"
                                    : c == '"'  ? "&#34;"
                                    : c == '\'' ? "&#39;"
                                                : std::string_view();
    if (escape.empty())
      out.append(text, pos, pos + 1);
    else
      out.append(escape, text.marked_at(pos));
  }
}

}  // namespace whit::jinja
