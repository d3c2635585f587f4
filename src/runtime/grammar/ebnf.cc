// The EBNF that llama.cpp's and xgrammar's users write: name ::= alternatives of sequences.
#include <map>

#include "base/error.h"
#include "runtime/grammar/compile.h"
#include "runtime/grammar/regex.h"

namespace whit {
namespace {

constexpr int kMaxDepth = 64;
constexpr int64_t kMaxRepeat = 2000;

class EbnfParser {
 public:
  explicit EbnfParser(std::string_view text) : text_(text) {}

  GrammarBuilder::Rule parse() {
    skip(true);
    while (more()) {
      const std::string rule = name();
      skip(false);
      if (text_.substr(at_, 3) != "::=") fail("'::=' is expected");
      at_ += 3;
      const Rule id = rule_of(rule);
      if (defined_[id]) fail("the rule \"" + rule + "\" is defined twice");
      defined_[id] = true;
      skip(true);
      builder.define(id, alternatives(0));
      skip(true);
    }
    const auto root = rules_.find("root");
    if (root == rules_.end())
      throw Error(ErrorKind::kInvalidArgument, "the grammar has no rule \"root\"");
    return root->second;
  }

  GrammarBuilder builder;

 private:
  using Expr = GrammarBuilder::Expr;
  using Rule = GrammarBuilder::Rule;

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::kInvalidArgument, "the grammar at byte {}: {}", at_, what);
  }
  bool more() const { return at_ < text_.size(); }

  // Blanks and comments; line ends too where `lines`.
  void skip(bool lines) {
    while (more()) {
      const char c = text_[at_];
      if (c == '#') {
        while (more() && text_[at_] != '\n') ++at_;
      } else if (c == ' ' || c == '\t' || c == '\r' || (lines && c == '\n')) {
        ++at_;
      } else {
        break;
      }
    }
  }

  std::string name() {
    const size_t begin = at_;
    while (more() && (std::isalnum(static_cast<unsigned char>(text_[at_])) || text_[at_] == '-' ||
                      text_[at_] == '_'))
      ++at_;
    if (at_ == begin) fail("a rule's name is expected");
    return std::string(text_.substr(begin, at_ - begin));
  }

  Rule rule_of(const std::string& rule) {
    const auto [found, is_new] = rules_.try_emplace(rule, 0);
    if (is_new) {
      found->second = builder.add_rule(rule);
      defined_.push_back(false);
    }
    return found->second;
  }

  Expr alternatives(int depth) {
    if (depth > kMaxDepth) fail(fmt::format("groups nested deeper than {}", kMaxDepth));
    std::vector<Expr> options = {sequence(depth)};
    while (true) {
      const size_t before = at_;
      skip(true);
      if (!more() || text_[at_] != '|') {
        at_ = depth > 0 ? at_ : before;
        return builder.choice(std::move(options));
      }
      ++at_;
      skip(true);
      options.push_back(sequence(depth));
    }
  }

  Expr sequence(int depth) {
    std::vector<Expr> parts;
    while (true) {
      skip(depth > 0);
      if (!more() || text_[at_] == '|' || text_[at_] == ')' || text_[at_] == '\n') break;
      parts.push_back(repetition(item(depth)));
    }
    return builder.sequence(std::move(parts));
  }

  Expr item(int depth) {
    if (text_[at_] == '(') {
      ++at_;
      const Expr inner = alternatives(depth + 1);
      skip(true);
      if (!more() || text_[at_] != ')') fail("a group is not closed");
      ++at_;
      return inner;
    }
    if (text_[at_] == '"') return literal();
    if (text_[at_] == '[') return character_class();
    if (text_[at_] == '.') {
      ++at_;
      const CodePointRange all[] = {{0, 0x10ffff}};
      return builder.code_points(all);
    }
    return builder.call(rule_of(name()));
  }

  // The same escapes and classes as in regular expressions.
  Expr from_regex(std::string_view pattern) {
    const CharacterWriter write = [&](const std::vector<CodePointRange>& ranges) {
      return builder.code_points(ranges);
    };
    try {
      return parse_regex(builder, pattern, write).body;
    } catch (const Error& error) {
      fail(error.what());
    }
  }

  Expr literal() {
    std::vector<Expr> parts;
    size_t begin = ++at_;
    while (more() && text_[at_] != '"') {
      if (text_[at_] != '\\') {
        ++at_;
        continue;
      }
      if (at_ > begin) parts.push_back(builder.literal(text_.substr(begin, at_ - begin)));
      const size_t digits = text_.substr(at_, 2) == "\\x"   ? 4
                            : text_.substr(at_, 2) == "\\u" ? 6
                                                            : 2;
      parts.push_back(from_regex(text_.substr(at_, digits)));
      begin = at_ = std::min(at_ + digits, text_.size());
    }
    if (!more()) fail("a text is not closed");
    if (at_ > begin) parts.push_back(builder.literal(text_.substr(begin, at_ - begin)));
    ++at_;
    return builder.sequence(std::move(parts));
  }

  Expr character_class() {
    const size_t begin = at_++;
    if (more() && text_[at_] == '^') ++at_;
    if (more() && text_[at_] == ']') ++at_;
    while (more() && text_[at_] != ']') at_ += text_[at_] == '\\' ? 2 : 1;
    if (!more()) fail("a class is not closed");
    ++at_;
    return from_regex(text_.substr(begin, at_ - begin));
  }

  int64_t number() {
    const size_t begin = at_;
    int64_t value = 0;
    while (more() && text_[at_] >= '0' && text_[at_] <= '9' && at_ - begin < 6)
      value = value * 10 + (text_[at_++] - '0');
    if (at_ == begin || value > kMaxRepeat)
      fail(fmt::format("a repetition must be a number up to {}", kMaxRepeat));
    return value;
  }

  Expr repetition(Expr part) {
    while (more()) {
      const char c = text_[at_];
      if (c == '*' || c == '+' || c == '?') {
        ++at_;
        part = builder.repeat(part, c == '+' ? 1 : 0, c == '?' ? 1 : -1);
      } else if (c == '{') {
        ++at_;
        const int64_t least = more() && text_[at_] == ',' ? 0 : number();
        int64_t most = least;
        if (more() && text_[at_] == ',') {
          ++at_;
          most = more() && text_[at_] == '}' ? -1 : number();
        }
        if (!more() || text_[at_] != '}') fail("a repetition is not closed");
        if (most >= 0 && most < least) fail("a repetition has more at least than at most");
        ++at_;
        part = builder.repeat(part, least, most);
      } else {
        break;
      }
    }
    return part;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::map<std::string, Rule> rules_;
  std::vector<bool> defined_;
};

}  // namespace

std::shared_ptr<const Grammar> compile_ebnf(std::string_view text,
                                            std::shared_ptr<const TokenTrie> tokens) {
  EbnfParser parser(text);
  const GrammarBuilder::Rule root = parser.parse();
  return parser.builder.build(root, std::move(tokens));
}

}  // namespace whit
