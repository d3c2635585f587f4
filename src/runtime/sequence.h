// One sequence of tokens on its way through the scheduler, and what a step does with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/block_pool.h"

namespace whit {

using SequenceId = uint64_t;

// What the scheduler needs to know of a sequence to begin with.
struct SequenceSpec {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_new_tokens = 1;
  int64_t priority = 0;     // smaller is sooner
  std::string tenant;       // tenants share the engine fairly
  std::string salt;         // cached pages are shared among equal salts only
  bool reads_cache = true;  // false: every token of the prompt is computed (its logits are wanted)
  // Sequences of one group have the same prompt and share its pages; 0: none.
  uint64_t group = 0;
};

struct Sequence {
  SequenceId id = 0;
  SequenceSpec spec;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  int64_t computed = 0;         // tokens whose keys and values are in `pages`
  int64_t published = 0;        // of the pages, those that others may find
  std::vector<PageId> pages;
  std::vector<int32_t> draft;  // guesses of what follows; checked, or dropped, by the next step
  bool drafted = false;        // a draft model follows it
  int64_t draft_missing = 0;   // of the computed tokens, the last that the draft model has not seen
  bool running = false;
  int64_t place = -1;          // while running: below max_sequences, its own
  int64_t waiting_since = 0;   // the scheduler's step
  int64_t cached_tokens = -1;  // of the prompt, found in the cache when it first ran
  int64_t preemptions = 0;

  int64_t length() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_length() const { return static_cast<int64_t>(spec.prompt.size()); }
  int64_t generated() const { return length() - prompt_length(); }
  int64_t longest() const { return prompt_length() + spec.max_new_tokens; }
};

// Tokens start … start+count−1 of a sequence run in this step. The last `drafts` of them are its
// draft. Where `samples`, the logits after the last known token choose the next one.
struct Chunk {
  Sequence* sequence = nullptr;
  int64_t start = 0, count = 0, drafts = 0;
  bool samples = false;
};

struct StepPlan {
  std::vector<Chunk> chunks;
  int64_t tokens = 0;
  int64_t preempted = 0;
};

}  // namespace whit
