// A set of allowed texts as a context-free grammar over bytes.
//
// Regular expressions, JSON schemas and EBNF texts are translated into rules whose right sides are
// regular expressions of bytes and other rules. build() turns each rule into a small automaton
// whose transitions are byte ranges and calls of rules; runtime/grammar/matcher.h runs it. What can
// never be completed is cut away, so that every state which can be reached can also be left.
//
// Everything here comes from requests: numbers of expressions and states are bounded, and what is
// beyond is refused (kResource), as is a grammar without any text or with left recursion
// (kInvalidArgument).
#pragma once

#include <bitset>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

class GrammarAutomaton;
class TokenTrie;

struct CodePointRange {
  uint32_t first, last;
};

// Shared by all requests with the same source; what its automaton has learnt helps them all.
class Grammar {
 public:
  explicit Grammar(std::unique_ptr<GrammarAutomaton> automaton);
  ~Grammar();
  GrammarAutomaton& automaton() const { return *automaton_; }

 private:
  std::unique_ptr<GrammarAutomaton> automaton_;
};

class GrammarBuilder {
 public:
  using Expr = int32_t;
  using Rule = int32_t;
  static constexpr int64_t kMaxExpressions = 100'000, kMaxStates = 200'000;

  Expr empty();  // the empty text
  Expr never();  // no text
  Expr literal(std::string_view bytes);
  Expr byte_set(const std::bitset<256>& bytes);
  // One character of the given ranges, in UTF-8. Surrogates are left out.
  Expr code_points(std::span<const CodePointRange> ranges);
  Expr sequence(std::vector<Expr> parts);
  Expr choice(std::vector<Expr> options);
  // max < 0: no bound.
  Expr repeat(Expr part, int64_t min, int64_t max);
  Expr optional(Expr part) { return repeat(part, 0, 1); }

  Rule add_rule(std::string name);
  void define(Rule rule, Expr body);
  Expr call(Rule rule);

  // Throws kInvalidArgument naming a rule that is not defined, that calls itself before any byte,
  // or a root without texts; kResource.
  std::shared_ptr<const Grammar> build(Rule root, std::shared_ptr<const TokenTrie> tokens);

 private:
  enum class Kind : uint8_t { kNever, kBytes, kSequence, kChoice, kRepeat, kCall };
  struct Node {
    Kind kind;
    std::bitset<256> bytes;
    std::vector<Expr> parts;
    int64_t min = 0, max = 0;
    Rule rule = -1;
  };
  struct RuleInfo {
    std::string name;
    Expr body = -1;
    bool productive = false, nullable = false;
  };
  struct Compilation;

  Expr add(Node node);
  bool productive(Expr expr) const;
  bool nullable(Expr expr) const;
  void analyse();
  void first_calls(Expr expr, std::vector<Rule>& calls) const;
  void refuse_left_recursion() const;

  std::vector<Node> nodes_;
  std::vector<RuleInfo> rules_;
};

}  // namespace whit
