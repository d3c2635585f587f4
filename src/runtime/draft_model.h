// Guesses of a small model that a large one checks (speculative decoding: Leviathan et al., ICML
// 2023).
//
// The small model follows every step of the large one in a cache of its own that has the same
// pages: a token's keys and values lie in the same slot of both, so what is shared, preempted or
// found again in the one is in the other. Its guesses are its most probable tokens, one after the
// other.
//
// A guess is taken only where it is the token that the large model's own sampler chooses there.
// That is the paper's rejection rule for a proposal that is certain of one token q: accepted with
// probability p(q), else a token from p without q; with a seed, it is the very answer that would
// have come without guesses. What the small model holds in its cache can cost acceptance, never
// change an answer.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/executor.h"
#include "engine/model.h"
#include "runtime/batch.h"

namespace whit {

class DraftModel {
 public:
  // Of a cache like that of the large model. `executor` must outlive this, and take as many tokens
  // a step as the large model and one more for each sequence.
  DraftModel(Executor& executor, int64_t pages, int64_t page_tokens, const KvFormat& kv_dtype);

  // Before the large model's step: takes part in its tokens and fills in the guesses of chunks with
  // drafts. `vocab`: of the large model; no guess is outside.
  void propose(const StepPlan& plan, int64_t vocab);
  // After it: accepted[c] of chunk c's guesses were right.
  static void accept(const StepPlan& plan, std::span<const int64_t> accepted);

  int64_t cache_bytes() const { return cache_.bytes(); }

 private:
  // Runs `chunks_`; the most probable token after each chunk that samples goes to guesses_, in
  // order.
  void run(int64_t vocab);

  Executor& executor_;
  KvCache cache_;
  StepBatch batch_;
  StepPlan chunks_;
  std::vector<int32_t> ids_, rows_, guesses_;
};

// Throws kInvalidArgument where the two models do not spell texts with the same tokens, or the
// small one does not reach `context` tokens.
void check_draft_model(const Model& draft, const Model& target, int64_t context);

}  // namespace whit
