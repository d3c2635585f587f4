// One text's way through a grammar, token by token.
#pragma once

#include <memory>
#include <span>

#include "base/error.h"
#include "runtime/grammar/automaton.h"
#include "runtime/grammar/grammar.h"

namespace whit {

class GrammarMatcher {
 public:
  explicit GrammarMatcher(std::shared_ptr<const Grammar> grammar)
      : grammar_(std::move(grammar)), config_(grammar_->automaton().start()) {}

  // One bit a token id of the tokenizer. Throws kResource where finding them takes too long.
  std::span<const uint64_t> allowed() { return grammar_->automaton().allowed(config_); }
  bool may_end() { return grammar_->automaton().may_end(config_); }
  // The text is complete and nothing can follow.
  bool must_end() { return grammar_->automaton().must_end(config_); }
  // Throws kInvalidArgument for a token that is not allowed; the matcher is of no use then.
  void accept(int32_t token) {
    GrammarAutomaton& automaton = grammar_->automaton();
    const std::span<const uint8_t> bytes = automaton.tokens().bytes(token);
    config_ = bytes.empty() ? GrammarAutomaton::kDead : automaton.after(config_, bytes);
    if (config_ == GrammarAutomaton::kDead)
      throw Error(ErrorKind::kInvalidArgument, "token {} does not follow the grammar", token);
  }

 private:
  std::shared_ptr<const Grammar> grammar_;
  GrammarAutomaton::Config config_;
};

}  // namespace whit
