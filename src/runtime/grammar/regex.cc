#include "runtime/grammar/regex.h"

#include <algorithm>
#include <cstdint>

#include "base/error.h"

namespace whit {
namespace {

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxRepeat = 2000;
constexpr uint32_t kLast = 0x10ffff;

using Ranges = std::vector<CodePointRange>;

const Ranges kDigits = {{'0', '9'}};
const Ranges kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const Ranges kSpace = {{'\t', '\r'}, {' ', ' '}};

Ranges sorted(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  Ranges merged;
  for (const CodePointRange& range : ranges) {
    if (!merged.empty() && range.first <= merged.back().last + 1)
      merged.back().last = std::max(merged.back().last, range.last);
    else
      merged.push_back(range);
  }
  return merged;
}

Ranges complement(Ranges ranges) {
  Ranges result;
  uint32_t next = 0;
  for (const CodePointRange& range : sorted(std::move(ranges))) {
    if (range.first > next) result.push_back({next, range.first - 1});
    next = range.last + 1;
  }
  if (next <= kLast) result.push_back({next, kLast});
  return result;
}

class Parser {
 public:
  Parser(GrammarBuilder& builder, std::string_view pattern, const CharacterWriter& write)
      : builder_(builder), pattern_(pattern), write_(write) {}

  RegexText parse() {
    RegexText result;
    result.anchored_begin = take('^');
    result.body = alternatives(0);
    if (at_ < pattern_.size()) fail("an unmatched ')'");
    result.anchored_end = anchored_end_;
    return result;
  }

 private:
  using Expr = GrammarBuilder::Expr;

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, "the regular expression has {} at byte {}", what, at_);
  }
  bool more() const { return at_ < pattern_.size(); }
  char peek() const { return pattern_[at_]; }
  bool take(char c) {
    if (!more() || peek() != c) return false;
    ++at_;
    return true;
  }

  uint32_t code_point() {
    const auto lead = static_cast<uint8_t>(pattern_[at_++]);
    if (lead < 0x80) return lead;
    const int length = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : -1;
    if (length < 0) fail("bytes that are not UTF-8");
    uint32_t value = lead & (0x3fu >> length);
    for (int i = 0; i < length; ++i) {
      if (!more() || (static_cast<uint8_t>(peek()) & 0xc0) != 0x80)
        fail("bytes that are not UTF-8");
      value = value << 6 | (static_cast<uint8_t>(pattern_[at_++]) & 0x3f);
    }
    return value;
  }

  Expr alternatives(int depth) {
    if (depth > kMaxDepth) fail(fmt::format("groups nested deeper than {}", kMaxDepth));
    std::vector<Expr> options = {items(depth)};
    while (take('|')) options.push_back(items(depth));
    return builder_.choice(std::move(options));
  }

  Expr items(int depth) {
    std::vector<Expr> parts;
    while (more() && peek() != '|' && peek() != ')') {
      if (peek() == '$') {
        ++at_;
        if (depth > 0 || more()) fail("a '$' that is not at its end");
        anchored_end_ = true;
        break;
      }
      if (peek() == '^') fail("a '^' that is not at its beginning");
      parts.push_back(repetition(atom(depth)));
    }
    return builder_.sequence(std::move(parts));
  }

  int64_t number() {
    const size_t begin = at_;
    int64_t value = 0;
    while (more() && peek() >= '0' && peek() <= '9' && at_ - begin < 6)
      value = value * 10 + (pattern_[at_++] - '0');
    if (at_ == begin) fail("a repetition without a number");
    if (value > kMaxRepeat) fail(fmt::format("a repetition of more than {}", kMaxRepeat));
    return value;
  }

  Expr repetition(Expr part) {
    for (int stacked = 0; more(); ++stacked) {
      int64_t least = 0, most = -1;
      if (take('*')) {
      } else if (take('+')) {
        least = 1;
      } else if (take('?')) {
        most = 1;
      } else if (peek() == '{') {
        ++at_;
        least = more() && peek() == ',' ? 0 : number();
        most = least;
        if (take(',')) most = more() && peek() == '}' ? -1 : number();
        if (!take('}')) fail("a repetition that is not closed");
        if (most >= 0 && most < least) fail("a repetition with more at least than at most");
      } else {
        break;
      }
      if (stacked > 0) fail("a repetition of a repetition");
      // Lazy or greedy: the set of texts is the same.
      take('?');
      if (more() && peek() == '+') fail("a possessive repetition");
      part = builder_.repeat(part, least, most);
    }
    return part;
  }

  Expr atom(int depth) {
    const char c = peek();
    if (c == '(') {
      ++at_;
      if (take('?')) {
        if (take('P') || (more() && peek() == '<')) {
          if (!take('<') || !more() || peek() == '=' || peek() == '!')
            fail("look-around, which is not supported,");
          const size_t end = pattern_.find('>', at_);
          if (end == std::string_view::npos) fail("a group's name that is not closed");
          at_ = end + 1;
        } else if (!take(':')) {
          fail("look-around or flags, which are not supported,");
        }
      }
      const Expr inner = alternatives(depth + 1);
      if (!take(')')) fail("a group that is not closed");
      return inner;
    }
    if (c == '[') {
      ++at_;
      return write_(character_class());
    }
    if (c == '.') {
      ++at_;
      return write_(complement({{'\n', '\n'}}));
    }
    if (c == '\\') {
      ++at_;
      return write_(escape());
    }
    if (c == '*' || c == '+' || c == '?') fail("a repetition of nothing");
    if (c == '{') fail("a repetition of nothing; a brace is written '\\{'");
    const uint32_t value = code_point();
    return write_({{value, value}});
  }

  uint32_t hexadecimal(int digits) {
    uint32_t value = 0;
    for (int i = 0; i < digits; ++i) {
      if (!more() || !std::isxdigit(static_cast<unsigned char>(peek()))) fail("a wrong escape");
      const char c = pattern_[at_++];
      value = value << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  Ranges escape() {
    if (!more()) fail("a backslash at its end");
    const char c = pattern_[at_];
    if (static_cast<uint8_t>(c) >= 0x80) fail("an unknown escape");
    ++at_;
    const auto one = [](uint32_t value) { return Ranges{{value, value}}; };
    switch (c) {
      case 'd':
        return kDigits;
      case 'D':
        return complement(kDigits);
      case 'w':
        return kWord;
      case 'W':
        return complement(kWord);
      case 's':
        return kSpace;
      case 'S':
        return complement(kSpace);
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        return one(0);
      case 'x':
        return one(hexadecimal(2));
      case 'u': {
        if (!take('{')) return one(hexadecimal(4));
        uint32_t value = 0;
        int digits = 0;
        while (more() && peek() != '}' && digits++ < 6) value = value << 4 | hexadecimal(1);
        if (!take('}') || value > kLast) fail("a wrong escape");
        return one(value);
      }
      default:
        if (std::isalnum(static_cast<unsigned char>(c)))
          fail(fmt::format("the escape '\\{}', which is not supported,", c));
        return one(static_cast<uint8_t>(c));
    }
  }

  Ranges character_class() {
    const bool negated = take('^');
    Ranges ranges;
    bool first = true;
    while (true) {
      if (!more()) fail("a class that is not closed");
      if (peek() == ']' && !first) break;
      first = false;
      const bool escaped = take('\\');
      const Ranges low = escaped ? escape() : Ranges{single()};
      if (low.size() == 1 && low[0].first == low[0].last && at_ + 1 < pattern_.size() &&
          peek() == '-' && pattern_[at_ + 1] != ']') {
        ++at_;
        const Ranges high = take('\\') ? escape() : Ranges{single()};
        if (high.size() != 1 || high[0].first != high[0].last || high[0].first < low[0].first)
          fail("a range that is not one");
        ranges.push_back({low[0].first, high[0].first});
      } else {
        ranges.insert(ranges.end(), low.begin(), low.end());
      }
    }
    ++at_;
    return negated ? complement(std::move(ranges)) : sorted(std::move(ranges));
  }

  CodePointRange single() {
    if (peek() == '[' && at_ + 1 < pattern_.size() && pattern_[at_ + 1] == ':')
      fail("a POSIX class, which is not supported,");
    const uint32_t value = code_point();
    return {value, value};
  }

  GrammarBuilder& builder_;
  std::string_view pattern_;
  const CharacterWriter& write_;
  size_t at_ = 0;
  bool anchored_end_ = false;
};

}  // namespace

RegexText parse_regex(GrammarBuilder& builder, std::string_view pattern,
                      const CharacterWriter& write) {
  return Parser(builder, pattern, write).parse();
}

}  // namespace whit
