#include "tokenizer/json_scanner.h"

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {
constexpr int kMaxDepth = 128;
}

void JsonScanner::fail(std::string_view problem) const {
  throw Error(ErrorKind::kInvalidData, "{}: not valid JSON at byte {}: {}", where_, pos_, problem);
}

void JsonScanner::skip_space() {
  while (pos_ < text_.size() &&
         (text_[pos_] == ' ' || text_[pos_] == '\n' || text_[pos_] == '\r' || text_[pos_] == '\t'))
    ++pos_;
}

char JsonScanner::peek() {
  skip_space();
  return pos_ < text_.size() ? text_[pos_] : '\0';
}

bool JsonScanner::take(char c) {
  if (peek() != c || pos_ >= text_.size()) return false;
  ++pos_;
  return true;
}

void JsonScanner::expect(char c) {
  if (!take(c)) fail(fmt::format("expected '{}'", c));
}

bool JsonScanner::begin_object() {
  expect('{');
  return !take('}');
}

bool JsonScanner::next_member() {
  if (take(',')) return true;
  expect('}');
  return false;
}

bool JsonScanner::begin_array() {
  expect('[');
  return !take(']');
}

bool JsonScanner::next_element() {
  if (take(',')) return true;
  expect(']');
  return false;
}

std::string_view JsonScanner::key() {
  const std::string_view name = string();
  expect(':');
  return name;
}

std::string_view JsonScanner::string() {
  expect('"');
  const size_t begin = pos_;
  for (; pos_ < text_.size(); ++pos_) {
    const unsigned char c = static_cast<unsigned char>(text_[pos_]);
    if (c == '"') {
      const std::string_view value = text_.substr(begin, pos_ - begin);
      if (valid_utf8_prefix(value) != value.size()) fail("a string that is not UTF-8");
      ++pos_;
      return value;
    }
    if (c == '\\') return escaped_string(begin);
    if (c < 0x20) fail("a control character inside a string");
  }
  fail("a string without an end");
}

char32_t JsonScanner::hex4() {
  char32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = pos_ < text_.size() ? text_[pos_++] : '\0';
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("a \\u escape needs four hexadecimal digits");
    value = value << 4 | static_cast<char32_t>(digit);
  }
  return value;
}

std::string_view JsonScanner::escaped_string(size_t begin) {
  scratch_.assign(text_, begin, pos_ - begin);
  while (pos_ < text_.size()) {
    const char c = text_[pos_++];
    if (c == '"') {
      if (valid_utf8_prefix(scratch_) != scratch_.size()) fail("a string that is not UTF-8");
      return scratch_;
    }
    if (static_cast<unsigned char>(c) < 0x20) fail("a control character inside a string");
    if (c != '\\') {
      scratch_ += c;
      continue;
    }
    const char escape = pos_ < text_.size() ? text_[pos_++] : '\0';
    switch (escape) {
      case '"':
      case '\\':
      case '/':
        scratch_ += escape;
        break;
      case 'b':
        scratch_ += '\b';
        break;
      case 'f':
        scratch_ += '\f';
        break;
      case 'n':
        scratch_ += '\n';
        break;
      case 'r':
        scratch_ += '\r';
        break;
      case 't':
        scratch_ += '\t';
        break;
      case 'u': {
        char32_t code = hex4();
        if (code >= 0xD800 && code < 0xDC00) {
          if (text_.substr(pos_, 2) != "\\u") fail("a high surrogate without its low surrogate");
          pos_ += 2;
          const char32_t low = hex4();
          if (low < 0xDC00 || low > 0xDFFF) fail("a high surrogate without its low surrogate");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code <= 0xDFFF) {
          fail("a low surrogate without its high surrogate");
        }
        append_utf8(code, scratch_);
        break;
      }
      default:
        fail("an unknown escape in a string");
    }
  }
  fail("a string without an end");
}

int64_t JsonScanner::integer() {
  peek();
  const bool negative = take('-');
  if (pos_ >= text_.size() || text_[pos_] < '0' || text_[pos_] > '9') fail("expected an integer");
  int64_t value = 0;
  for (; pos_ < text_.size() && text_[pos_] >= '0' && text_[pos_] <= '9'; ++pos_) {
    if (__builtin_mul_overflow(value, 10, &value) ||
        __builtin_add_overflow(value, text_[pos_] - '0', &value))
      fail("an integer that does not fit in 63 bits");
  }
  if (pos_ < text_.size() && (text_[pos_] == '.' || text_[pos_] == 'e' || text_[pos_] == 'E'))
    fail("expected an integer, got a fraction");
  return negative ? -value : value;
}

std::string_view JsonScanner::raw_value() {
  const char first = peek();
  const size_t begin = pos_;
  if (first == '\0') fail("expected a value");
  if (first != '{' && first != '[' && first != '"') {
    while (pos_ < text_.size() &&
           std::string_view(",]} \n\r\t").find(text_[pos_]) == std::string_view::npos)
      ++pos_;
    if (pos_ == begin) fail("expected a value");
    return text_.substr(begin, pos_ - begin);
  }
  int depth = 0;
  for (; pos_ < text_.size(); ++pos_) {
    const char c = text_[pos_];
    if (c == '"') {
      for (++pos_; pos_ < text_.size() && text_[pos_] != '"'; ++pos_)
        if (text_[pos_] == '\\') ++pos_;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) fail("nested too deep");
    } else if (c == '}' || c == ']') {
      --depth;
    } else {
      continue;
    }
    if (depth == 0 && pos_ < text_.size()) {
      ++pos_;
      return text_.substr(begin, pos_ - begin);
    }
  }
  fail("a value without an end");
}

void JsonScanner::expect_end() {
  if (peek() != '\0' || pos_ < text_.size()) fail("something follows the end");
}

}  // namespace whit
