#include "runtime/grammar/compile.h"

#include "base/error.h"
#include "runtime/grammar/automaton.h"
#include "runtime/grammar/regex.h"

namespace whit {

std::shared_ptr<const Grammar> compile_regex(std::string_view pattern,
                                             std::shared_ptr<const TokenTrie> tokens) {
  GrammarBuilder builder;
  const CharacterWriter write = [&](const std::vector<CodePointRange>& ranges) {
    return builder.code_points(ranges);
  };
  const GrammarBuilder::Rule root = builder.add_rule("root");
  builder.define(root, parse_regex(builder, pattern, write).body);
  return builder.build(root, std::move(tokens));
}

std::shared_ptr<const Grammar> compile_choice(const std::vector<std::string>& texts,
                                              std::shared_ptr<const TokenTrie> tokens) {
  GrammarBuilder builder;
  std::vector<GrammarBuilder::Expr> options;
  for (const std::string& text : texts) options.push_back(builder.literal(text));
  const GrammarBuilder::Rule root = builder.add_rule("root");
  builder.define(root, builder.choice(std::move(options)));
  return builder.build(root, std::move(tokens));
}

std::shared_ptr<const Grammar> GrammarCache::get(const std::string& source,
                                                 const Compile& compile) {
  {
    std::lock_guard lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
      if (entry->source == source) {
        entries_.splice(entries_.begin(), entries_, entry);
        if (entry->grammar->automaton().bytes() <= kMaxEntryBytes) return entry->grammar;
        entries_.erase(entry);  // requests that use it keep it; others begin anew
        break;
      }
  }
  std::shared_ptr<const Grammar> grammar = compile();
  std::lock_guard lock(mutex_);
  entries_.push_front({source, grammar});
  while (entries_.size() > kMaxEntries || (entries_.size() > 1 && locked_bytes() > kMaxBytes))
    entries_.pop_back();
  return grammar;
}

int64_t GrammarCache::bytes() {
  std::lock_guard lock(mutex_);
  return locked_bytes();
}

int64_t GrammarCache::locked_bytes() {
  int64_t sum = 0;
  for (const Entry& entry : entries_)
    sum += std::ssize(entry.source) + entry.grammar->automaton().bytes();
  return sum;
}

}  // namespace whit
