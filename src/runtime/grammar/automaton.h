// A grammar's rules as automata, and what they make of texts: a set of stacks, made deterministic
// step by step and remembered.
//
// A position in a text is a configuration: the set of (state, stack of return states) that the text
// can have led to. Stacks are shared lists, configurations are numbered, and each of them keeps a
// table of what follows on each byte, filled when first asked for; so texts that are usual cost one
// look-up a byte, and a regular expression becomes its usual lazy automaton (Thompson 1968). The
// tokens that may follow a configuration are found by one walk over the vocabulary's trie.
//
// Time and memory are bounded: a configuration's size, the number of configurations, the depth of
// stacks, the work of one question. Beyond them: Error(kResource), never a wrong answer.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/grammar/token_trie.h"

namespace whit {

struct GrammarState {
  struct Edge {
    uint8_t first, last;
    int32_t target;
  };
  struct Call {
    int32_t entry;   // the called rule's first state
    int32_t target;  // where it returns to
  };
  std::vector<Edge> edges;
  std::vector<int32_t> silent;  // states reached without a byte
  std::vector<Call> calls;
  bool final = false;  // the rule may end here
};

class GrammarAutomaton {
 public:
  using Config = int32_t;
  static constexpr Config kDead = -1;
  static constexpr int32_t kMaxDepth = 512;                // of stacks: nesting of rules
  static constexpr size_t kMaxItems = 2000;                // of one configuration
  static constexpr int64_t kMaxBytes = int64_t{32} << 20;  // of all that is remembered
  static constexpr int64_t kMaxWork = 2'000'000;           // items looked at for one question

  GrammarAutomaton(std::vector<GrammarState> states, int32_t start,
                   std::shared_ptr<const TokenTrie> tokens);

  Config start();
  // Where the text goes on with a token's bytes.
  Config after(Config config, std::span<const uint8_t> bytes);
  bool may_end(Config config);
  bool must_end(Config config);
  // One bit a token id: those whose bytes may follow. Valid as long as the automaton.
  std::span<const uint64_t> allowed(Config config);
  const TokenTrie& tokens() const { return *tokens_; }
  int64_t bytes();

 private:
  struct Item {
    int32_t state, stack;
    auto operator<=>(const Item&) const = default;
  };
  struct Stack {
    int32_t target, parent, depth;
  };
  struct Entry {
    std::vector<Item> items;  // states with edges, sorted
    bool may_end = false;
    std::vector<Config> next;                        // by byte; empty until needed
    const std::vector<uint64_t>* allowed = nullptr;  // one of masks_; null until needed
  };
  static constexpr Config kUnknown = -2;

  int32_t push(int32_t target, int32_t parent);
  void close(std::vector<Item>& work);
  Config intern();
  Config step(Config config, uint8_t byte);
  void count_work(int64_t items);

  std::vector<GrammarState> states_;
  int32_t start_;
  std::shared_ptr<const TokenTrie> tokens_;
  std::mutex mutex_;
  std::vector<Stack> stacks_;  // 0: the empty one
  std::unordered_map<uint64_t, int32_t> stack_index_;
  std::vector<std::unique_ptr<Entry>> configs_;
  std::unordered_multimap<uint64_t, Config> config_index_;
  // By hash. Few differ: inside of a text the same tokens may follow, however far it has come.
  std::unordered_multimap<uint64_t, std::vector<uint64_t>> masks_;
  Config start_config_ = kUnknown;
  int64_t bytes_ = 0, work_ = 0;
  // Of the closure being made.
  std::vector<Item> closed_, kept_;
  bool ends_ = false;
};

}  // namespace whit
