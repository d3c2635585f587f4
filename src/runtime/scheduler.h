// Decides which tokens of which sequences the next step computes: in-flight batching over a paged
// cache. It knows no model and no clock; time is the number of steps.
//
//   Batching    Every step takes one token (and its draft) of each sequence that is generating, and
//               fills the rest of its tokens with prompts, in chunks.
//   Admission   The waiting sequence with the most urgent priority runs first; each `aging_steps`
//               of waiting count as one level of priority, so that nothing waits for ever. Of
//               equals the tenant that has been served least (virtual token counters: Sheng et al.,
//               OSDI 2024, "Fairness in Serving Large Language Models": a generated token weighs as
//               two of a prompt, and who returns after a pause begins at the least counter in use),
//               then first come. What is next is not overtaken by smaller ones.
//   Policy      kMaxUtilization admits what fits now. When pages run out, the least urgent, then
//               youngest sequence loses its pages and waits again; what it had is computed anew, or
//               found in the cache. kGuaranteedNoEvict admits what fits even if all of its tokens
//               are generated, and never takes a page away.
//   Prefixes    Pages of a prompt that are in the cache are not computed again; all but the last
//               token can be.
// The most urgent running sequence always gets its pages, and each fits alone: all of them end.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>

#include "runtime/sequence.h"

namespace whit {

enum class SchedulerPolicy { kMaxUtilization, kGuaranteedNoEvict };

struct SchedulerOptions {
  int64_t max_sequences = 64;     // running together
  int64_t max_step_tokens = 256;  // of one step, at least max_sequences + 1
  // Prompt tokens of a step in which others generate, or half as many again as they are: a step
  // then takes about twice as long as it would without, and prompts of half as many tokens again as
  // their answers keep every place generating. More in proportion where several sequences wait for
  // free places: few that generate do not keep many from starting. 0: what fits.
  int64_t max_prompt_chunk = 0;
  int64_t max_context = 2048;  // tokens of one sequence
  SchedulerPolicy policy = SchedulerPolicy::kMaxUtilization;
  bool prefix_caching = true;
  int64_t aging_steps = 128;
};

struct SchedulerStats {
  int64_t running = 0, waiting = 0;
  int64_t prefix_queries = 0, prefix_hits = 0;  // prompt tokens looked for, and found
  int64_t preemptions = 0;
};

class Scheduler {
 public:
  // The pool must outlive the scheduler. Throws kInvalidArgument for impossible options.
  Scheduler(BlockPool& pool, const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Throws kInvalidArgument for a sequence that could never run: no prompt, nothing to generate,
  // longer than the context or than all pages together.
  Sequence& add(SequenceSpec spec);

  // The next step. Its sequences stay valid until complete(); between the two, nothing else may be
  // called. No chunks: nothing to do.
  const StepPlan& schedule();
  // The step is done: the keys and values of its tokens are in the cache. accepted[i] of chunk i's
  // draft tokens were right (may be empty where there were no drafts).
  void complete(std::span<const int64_t> accepted = {});
  // The step failed: what its tokens' slots contain is not known. Its sequences must be finished.
  void discard();

  // Only for sequences whose logits the completed step gave: its next tokens.
  void append(Sequence& sequence, std::span<const int32_t> tokens);
  // Ends a sequence, at any time but between schedule() and complete(). `sequence` is gone.
  void finish(Sequence& sequence);

  bool idle() const { return sequences_.empty(); }
  SchedulerStats stats() const;
  const SchedulerOptions& options() const { return options_; }

 private:
  struct Tenant {
    double service = 0;     // virtual tokens
    int64_t sequences = 0;  // waiting or running
  };

  int64_t pages_for(int64_t tokens) const;
  Sequence* most_urgent_waiting();
  bool more_urgent(const Sequence& a, const Sequence& b) const;
  const Sequence* leader_of(const Sequence& sequence, bool& must_wait) const;
  bool admit(Sequence& sequence);
  void attach_prefix(Sequence& sequence);
  bool grow(Sequence& sequence, int64_t tokens);
  bool make_room(Sequence& sequence, int64_t tokens);
  void preempt(Sequence& sequence);
  void release_pages(Sequence& sequence);
  void give_place_back(Sequence& sequence);
  void plan_chunk(Sequence& sequence, int64_t count, int64_t drafts);
  void plan_decodes();
  void plan_prompts(int64_t room);

  BlockPool& pool_;
  SchedulerOptions options_;
  int64_t step_ = 0;
  SequenceId next_id_ = 1;
  int64_t reserved_pages_ = 0;  // of running sequences, under kGuaranteedNoEvict
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // most urgent first
  std::vector<int64_t> free_places_;
  std::vector<Sequence*> waiting_;
  std::map<std::string, Tenant, std::less<>> tenants_;
  StepPlan plan_;
  SchedulerStats stats_;
};

}  // namespace whit
