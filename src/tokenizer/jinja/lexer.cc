#include "tokenizer/jinja/lexer.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace whit::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_part(char c) { return is_name_start(c) || is_digit(c); }

class Lexer {
 public:
  Lexer(std::string_view source, std::string_view where) : where_(where) {
    source_.reserve(source.size());
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] != '\r') {
        source_ += source[i];
        continue;
      }
      source_ += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    while (pos_ < source_.size()) lex_data();
    push(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string_view problem) const {
    throw Error(ErrorKind::kInvalidData, "{}: template line {}: {}", where_, line_, problem);
  }

  bool at(std::string_view text) const { return at(pos_, text); }
  bool at(size_t pos, std::string_view text) const {
    return source_.compare(pos, text.size(), text) == 0;
  }

  void push(TokenType type, std::string text) { tokens_.push_back({type, line_, std::move(text)}); }

  void advance(size_t count) {
    line_ +=
        static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(pos_),
                                    source_.begin() + static_cast<ptrdiff_t>(pos_ + count), '\n'));
    pos_ += count;
    if (count > 0) line_starting_ = source_[pos_ - 1] == '\n';
  }

  size_t space_length(size_t pos) const {
    const size_t begin = pos;
    while (pos < source_.size()) {
      const CodePoint c = code_point_at(source_, pos);
      // Python's str.isspace() also counts the ASCII separators U+001C to U+001F.
      if (!is_whitespace(c.value) && !(c.value >= 0x1C && c.value <= 0x1F)) break;
      pos += c.bytes;
    }
    return pos - begin;
  }

  std::string_view strip_right(std::string_view text) const {
    while (!text.empty()) {
      size_t start = text.size() - 1;
      while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      const char32_t c = code_point_at(text, start).value;
      if (!is_whitespace(c) && !(c >= 0x1C && c <= 0x1F)) break;
      text = text.substr(0, start);
    }
    return text;
  }

  // Text up to the next tag, then the tag.
  void lex_data() {
    size_t tag = pos_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos || at(tag, "{{") || at(tag, "{%") || at(tag, "{#")) break;
      ++tag;
    }
    const std::string_view rest = std::string_view(source_).substr(pos_);
    if (tag == std::string::npos) {
      push(TokenType::kData, std::string(rest));
      advance(rest.size());
      return;
    }
    std::string_view text = rest.substr(0, tag - pos_);
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const bool has_sign = sign == '-' || sign == '+';
    if (sign == '-') {
      text = strip_right(text);
    } else if (sign != '+' && kind != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
      if ((line_begin > 0 || line_starting_) && strip_right(text.substr(line_begin)).empty())
        text = text.substr(0, line_begin);
    }
    if (!text.empty()) push(TokenType::kData, std::string(text));
    advance(tag - pos_);
    advance(has_sign ? 3 : 2);
    if (kind == '#') {
      lex_comment();
    } else if (kind == '%') {
      if (!lex_raw()) {
        push(TokenType::kBlockBegin, "");
        lex_code("%}", TokenType::kBlockEnd);
      }
    } else {
      push(TokenType::kVariableBegin, "");
      lex_code("}}", TokenType::kVariableEnd);
    }
  }

  // After a block's or comment's end: the first newline belongs to the tag; `-` takes all white
  // space.
  void finish_tag(char sign) {
    if (sign == '-')
      advance(space_length(pos_));
    else if (sign != '+' && at("\n"))
      advance(1);
  }

  void lex_comment() {
    const size_t end = source_.find("#}", pos_);
    if (end == std::string::npos) fail("a comment without its #}");
    const char sign = end > pos_ ? source_[end - 1] : '\0';
    advance(end - pos_ + 2);
    finish_tag(sign);
  }

  // {% raw %} … {% endraw %}; pos_ is after "{%" and its sign. False if this is another tag.
  bool lex_raw() {
    size_t pos = pos_ + space_length(pos_);
    if (!at(pos, "raw")) return false;
    pos += 3;
    pos += space_length(pos);
    const bool strip = at(pos, "-%}");
    if (!strip && !at(pos, "%}")) return false;
    advance(pos - pos_ + (strip ? 3 : 2));
    if (strip) advance(space_length(pos_));
    for (size_t begin = pos_;; ++begin) {
      begin = source_.find("{%", begin);
      if (begin == std::string::npos) fail("{% raw %} without its {% endraw %}");
      size_t end = begin + 2;
      const char sign = end < source_.size() ? source_[end] : '\0';
      if (sign == '-' || sign == '+') ++end;
      end += space_length(end);
      if (!at(end, "endraw")) continue;
      end += 6;
      end += space_length(end);
      char close = '\0';
      if (at(end, "-%}") || at(end, "+%}")) close = source_[end++];
      if (!at(end, "%}")) continue;
      std::string_view text = std::string_view(source_).substr(pos_, begin - pos_);
      if (sign == '-') {
        text = strip_right(text);
      } else if (sign != '+') {
        const size_t newline = text.rfind('\n');
        const size_t line_begin = newline == std::string_view::npos ? 0 : newline + 1;
        if ((line_begin > 0 || line_starting_) && strip_right(text.substr(line_begin)).empty())
          text = text.substr(0, line_begin);
      }
      if (!text.empty()) push(TokenType::kData, std::string(text));
      advance(end + 2 - pos_);
      finish_tag(close);
      return true;
    }
  }

  void lex_code(std::string_view close, TokenType close_type) {
    std::string brackets;  // expected closers
    while (true) {
      advance(space_length(pos_));
      if (pos_ >= source_.size()) fail("a tag without its end");
      if (brackets.empty()) {
        const char sign = source_[pos_];
        const bool block = close_type == TokenType::kBlockEnd;
        const bool has_sign = sign == '-' || (sign == '+' && block);
        if (at(pos_ + (has_sign ? 1 : 0), close)) {
          push(close_type, "");
          advance(close.size() + (has_sign ? 1 : 0));
          if (block)
            finish_tag(has_sign ? sign : '\0');
          else if (sign == '-')
            advance(space_length(pos_));
          return;
        }
      }
      lex_token(brackets);
    }
  }

  void lex_token(std::string& brackets) {
    const char c = source_[pos_];
    if (is_digit(c)) return lex_number();
    if (is_name_start(c)) {
      size_t end = pos_ + 1;
      while (end < source_.size() && is_name_part(source_[end])) ++end;
      push(TokenType::kName, source_.substr(pos_, end - pos_));
      return advance(end - pos_);
    }
    if (c == '"' || c == '\'') return lex_string(c);
    static constexpr std::string_view kOperators[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!at(op)) continue;
      if (op == "(") brackets += ')';
      if (op == "[") brackets += ']';
      if (op == "{") brackets += '}';
      if (op == ")" || op == "]" || op == "}") {
        if (brackets.empty() || brackets.back() != op[0]) fail(fmt::format("unexpected '{}'", op));
        brackets.pop_back();
      }
      push(TokenType::kOperator, std::string(op));
      return advance(op.size());
    }
    fail(fmt::format("unexpected character '{}'",
                     std::string_view(source_).substr(pos_, code_point_at(source_, pos_).bytes)));
  }

  void lex_number() {
    size_t end = pos_;
    const auto digits = [&] {
      while (end < source_.size() &&
             (is_digit(source_[end]) ||
              (source_[end] == '_' && end + 1 < source_.size() && is_digit(source_[end + 1]))))
        ++end;
    };
    int base = 10;
    if (source_[pos_] == '0' && pos_ + 2 < source_.size()) {
      const char prefix = source_[pos_ + 1] | 32;
      base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : prefix == 'b' ? 2 : 10;
    }
    bool real = false;
    if (base != 10) {
      end += 2;
      while (end < source_.size() && (is_name_part(source_[end]))) ++end;
    } else {
      digits();
      const bool after_dot = pos_ > 0 && source_[pos_ - 1] == '.';
      if (!after_dot && end + 1 < source_.size() && source_[end] == '.' &&
          is_digit(source_[end + 1])) {
        real = true;
        ++end;
        digits();
      }
      if (!after_dot && end < source_.size() && (source_[end] | 32) == 'e') {
        const size_t exponent =
            end + 1 +
            (end + 1 < source_.size() && (source_[end + 1] == '+' || source_[end + 1] == '-'));
        if (exponent < source_.size() && is_digit(source_[exponent])) {
          real = true;
          end = exponent;
          digits();
        }
      }
    }
    std::string text = source_.substr(pos_, end - pos_);
    std::erase(text, '_');
    Token token{real ? TokenType::kFloat : TokenType::kInteger, line_, text};
    const char* begin = text.data() + (base == 10 ? 0 : 2);
    const char* last = text.data() + text.size();
    const auto result = real ? std::from_chars(begin, last, token.real)
                             : std::from_chars(begin, last, token.integer, base);
    if (result.ec != std::errc() || result.ptr != last)
      fail(fmt::format("the number {} is not valid or too large", text));
    tokens_.push_back(std::move(token));
    advance(end - pos_);
  }

  void lex_string(char quote) {
    std::string value;
    size_t pos = pos_ + 1;
    const auto hex = [&](size_t count) {
      uint32_t code = 0;
      const char* begin = source_.data() + pos;
      if (pos + count > source_.size() ||
          std::from_chars(begin, begin + count, code, 16).ptr != begin + count)
        fail("a string escape lacks its hexadecimal digits");
      pos += count;
      if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
        fail("a string escape that is not a character");
      append_utf8(code, value);
    };
    while (true) {
      if (pos >= source_.size()) fail("a string without its closing quote");
      const char c = source_[pos++];
      if (c == quote) break;
      if (c != '\\') {
        value += c;
        continue;
      }
      if (pos >= source_.size()) fail("a string without its closing quote");
      const char escape = source_[pos++];
      static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      const size_t simple = kFrom.find(escape);
      if (simple != std::string_view::npos) {
        value += kTo[simple];
      } else if (escape == '\n') {  // a continued line
      } else if (escape == 'x') {
        hex(2);
      } else if (escape == 'u') {
        hex(4);
      } else if (escape == 'U') {
        hex(8);
      } else if (escape >= '0' && escape <= '7') {
        char32_t code = static_cast<char32_t>(escape - '0');
        for (int i = 0; i < 2 && pos < source_.size() && source_[pos] >= '0' && source_[pos] <= '7';
             ++i)
          code = code * 8 + static_cast<char32_t>(source_[pos++] - '0');
        append_utf8(code, value);
      } else {
        value += '\\';
        value += escape;
      }
    }
    push(TokenType::kString, std::move(value));
    advance(pos - pos_);
  }

  std::string_view where_;
  std::string source_;
  size_t pos_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source, std::string_view where) {
  return Lexer(source, where).run();
}

}  // namespace whit::jinja
