// Sources of grammars: what requests ask an answer to look like. Everything that cannot be honoured
// exactly is refused (kInvalidArgument, kUnsupported, kResource), never ignored.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/json.h"
#include "runtime/grammar/grammar.h"

namespace whit {

// The whole text matches the pattern: literals, escapes, classes, groups, alternation, repetition;
// ^ at the beginning and $ at the end change nothing. No look-around, back references or word
// borders.
std::shared_ptr<const Grammar> compile_regex(std::string_view pattern,
                                             std::shared_ptr<const TokenTrie> tokens);

// The text is one JSON value that satisfies the schema (JSON Schema, draft 2020-12, the keywords
// that json_schema.cc lists; members come in the order of "properties"). A JSON object where
// `schema` is null.
std::shared_ptr<const Grammar> compile_json_schema(const Json& schema,
                                                   std::shared_ptr<const TokenTrie> tokens);

// Rules `name ::= …` of "literals", [classes], (groups), alternatives |, * + ? {m,n}, # comments;
// the text is what `root` describes.
std::shared_ptr<const Grammar> compile_ebnf(std::string_view text,
                                            std::shared_ptr<const TokenTrie> tokens);

// One of the texts.
std::shared_ptr<const Grammar> compile_choice(const std::vector<std::string>& texts,
                                              std::shared_ptr<const TokenTrie> tokens);

// A call of one of the tools in the form <tool_call>{"name": …, "arguments": …}</tool_call>.
//   tools   name and schema of the arguments (null: any object)
std::shared_ptr<const Grammar> compile_tool_call(
    const std::vector<std::pair<std::string, Json>>& tools,
    std::shared_ptr<const TokenTrie> tokens);

// Grammars by their source: the same schema, asked for again and again, is compiled once. The least
// recently used are dropped when all together have grown large, as is any that has on its own.
class GrammarCache {
 public:
  using Compile = std::function<std::shared_ptr<const Grammar>()>;
  // From any thread.
  std::shared_ptr<const Grammar> get(const std::string& source, const Compile& compile);
  int64_t bytes();

 private:
  static constexpr size_t kMaxEntries = 32;
  static constexpr int64_t kMaxEntryBytes = int64_t{8} << 20, kMaxBytes = int64_t{32} << 20;
  struct Entry {
    std::string source;
    std::shared_ptr<const Grammar> grammar;
  };
  int64_t locked_bytes();

  std::mutex mutex_;
  std::list<Entry> entries_;  // most recently used first
};

}  // namespace whit
