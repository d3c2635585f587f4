#include "runtime/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/error.h"

namespace whit {
namespace {

// Stands for a model whose next token is a function of all tokens before it, and for the cache's
// memory: each slot remembers the text that led to it, so that a page shared wrongly, written
// twice or read after it was lost is noticed at once.
class FakeEngine {
 public:
  FakeEngine(BlockPool& pool, int32_t vocab) : pool_(pool), vocab_(vocab) {
    slots_.resize(pool.size() * pool.page_tokens());
  }

  static uint64_t extend(uint64_t text, int32_t token) {
    uint64_t z = (text ^ static_cast<uint64_t>(token + 1)) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 29)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 32);
  }
  int32_t next(uint64_t text) const { return static_cast<int32_t>(text % vocab_); }

  // Generates `count` tokens alone.
  std::vector<int32_t> expected(std::span<const int32_t> prompt, int64_t count) const {
    uint64_t text = 0;
    for (const int32_t token : prompt) text = extend(text, token);
    std::vector<int32_t> result;
    for (int64_t i = 0; i < count; ++i) {
      result.push_back(next(text));
      text = extend(text, result.back());
    }
    return result;
  }

  // Runs the plan; returns per chunk the sampled tokens and fills accepted.
  std::vector<std::vector<int32_t>> run(const StepPlan& plan, std::vector<int64_t>& accepted) {
    std::vector<std::vector<int32_t>> sampled;
    std::set<int64_t> written;
    accepted.assign(plan.chunks.size(), 0);
    for (size_t c = 0; c < plan.chunks.size(); ++c) {
      const Chunk& chunk = plan.chunks[c];
      const Sequence& sequence = *chunk.sequence;
      std::vector<int32_t> tokens = sequence.tokens;
      tokens.insert(tokens.end(), sequence.draft.begin(), sequence.draft.end());
      EXPECT_EQ(chunk.start, sequence.computed);
      EXPECT_LE(chunk.start + chunk.count, static_cast<int64_t>(tokens.size()));
      uint64_t text = 0;
      std::vector<int32_t> out;
      bool right = true;
      for (int64_t position = 0; position < chunk.start + chunk.count; ++position) {
        text = extend(text, tokens[position]);
        const PageId page = sequence.pages.at(position / pool_.page_tokens());
        const int64_t slot = page * pool_.page_tokens() + position % pool_.page_tokens();
        if (position < chunk.start) {
          if (slots_[slot] != text)
            ADD_FAILURE() << "position " << position << " is another text's";
          continue;
        }
        if (!written.insert(slot).second) ADD_FAILURE() << "a slot is written twice";
        if (pool_.holders(page) != 1 || pool_.is_published(page))
          ADD_FAILURE() << "a shared page is written";
        slots_[slot] = text;
        const int64_t known = sequence.length() - 1;
        if (chunk.samples && position >= known && right) {
          out.push_back(next(text));
          const bool drafted = position + 1 < chunk.start + chunk.count;
          right = drafted && tokens[position + 1] == out.back();
          if (right) ++accepted[c];
        }
      }
      sampled.push_back(std::move(out));
    }
    return sampled;
  }

 private:
  BlockPool& pool_;
  int32_t vocab_;
  std::vector<uint64_t> slots_;
};

struct Simulation {
  explicit Simulation(uint32_t seed) : random(seed) {}

  int64_t below(int64_t n) { return static_cast<int64_t>(random() % static_cast<uint32_t>(n)); }

  // One random trace from the first arrival to the last end.
  void run() {
    SchedulerOptions options;
    options.max_sequences = 1 + below(6);
    options.max_step_tokens = options.max_sequences + 1 + below(20);
    options.max_prompt_chunk = below(2) * (1 + below(8));
    options.max_context = 64;
    options.aging_steps = 1 + below(64);
    options.prefix_caching = below(4) != 0;
    options.policy =
        below(2) ? SchedulerPolicy::kMaxUtilization : SchedulerPolicy::kGuaranteedNoEvict;
    BlockPool pool(4 + below(24), 1 + below(6), random());
    FakeEngine engine(pool, 11);
    Scheduler scheduler(pool, options);
    const int64_t requests = 1 + below(24), drafting = below(3), cancelling = below(3);
    int64_t arrived = 0, work = 0, steps = 0, most = 0;
    std::set<Sequence*> alive;
    std::vector<int32_t> shared(40);
    for (int32_t& token : shared) token = static_cast<int32_t>(below(11));
    while (arrived < requests || !scheduler.idle()) {
      ASSERT_LT(++steps, 2000 + 8 * work) << "a sequence does not end";
      if (arrived < requests && below(3) == 0)
        arrive(scheduler, pool, shared, alive, arrived, work);
      if (cancelling == 0 && !alive.empty() && below(9) == 0) {
        Sequence* victim = *std::next(alive.begin(), below(static_cast<int64_t>(alive.size())));
        scheduler.finish(*victim);
        alive.erase(victim);
      }
      for (Sequence* sequence : alive)
        if (drafting == 0 && sequence->generated() > 0 && below(2))
          for (const int32_t token : engine.expected(sequence->tokens, 1 + below(4)))
            sequence->draft.push_back(below(4) ? token : static_cast<int32_t>(below(11)));
      const StepPlan& plan = scheduler.schedule();
      ASSERT_LE(plan.tokens, options.max_step_tokens);
      ASSERT_LE(static_cast<int64_t>(plan.chunks.size()), options.max_sequences);
      ASSERT_EQ(alive.empty(), plan.chunks.empty()) << "nothing runs";
      ASSERT_TRUE(plan.preempted == 0 || options.policy == SchedulerPolicy::kMaxUtilization);
      most = std::max(most, pool.in_use());
      std::vector<int64_t> accepted;
      const auto sampled = engine.run(plan, accepted);
      const std::vector<Chunk> chunks = plan.chunks;
      scheduler.complete(accepted);
      for (size_t c = 0; c < chunks.size(); ++c) {
        if (!chunks[c].samples) continue;
        Sequence& sequence = *chunks[c].sequence;
        scheduler.append(sequence, sampled[c]);
        ASSERT_EQ(sequence.computed, sequence.length() - 1);
        if (sequence.generated() < sequence.spec.max_new_tokens) continue;
        const std::vector<int32_t> expected =
            engine.expected(sequence.spec.prompt, sequence.generated());
        ASSERT_TRUE(std::equal(expected.begin(), expected.end(),
                               sequence.tokens.begin() + sequence.prompt_length()));
        ASSERT_EQ(sequence.generated(), sequence.spec.max_new_tokens);
        alive.erase(&sequence);
        scheduler.finish(sequence);
      }
    }
    ASSERT_TRUE(alive.empty());
    ASSERT_EQ(pool.in_use(), 0) << "pages leaked";
    preemptions += scheduler.stats().preemptions;
    hits += scheduler.stats().prefix_hits;
    if (most == pool.size()) ++full;
  }

  void arrive(Scheduler& scheduler, BlockPool& pool, const std::vector<int32_t>& shared,
              std::set<Sequence*>& alive, int64_t& arrived, int64_t& work) {
    SequenceSpec spec;
    const int64_t room = std::min<int64_t>(64, pool.size() * pool.page_tokens());
    const int64_t total = 2 + below(room - 1);
    const int64_t prompt = 1 + below(total - 1);
    const int64_t common = below(prompt + 1);
    for (int64_t i = 0; i < prompt; ++i)
      spec.prompt.push_back(i < common && i < 40 ? shared[i] : static_cast<int32_t>(below(11)));
    spec.max_new_tokens = total - prompt;
    spec.priority = below(3);
    spec.tenant = std::string(1, static_cast<char>('a' + below(3)));
    spec.salt = below(4) ? "" : "salted";
    spec.reads_cache = below(5) != 0;
    const int64_t copies = below(4) ? 1 : 1 + below(3);
    if (copies > 1) spec.group = static_cast<uint64_t>(arrived + 1);
    for (int64_t i = 0; i < copies; ++i) alive.insert(&scheduler.add(spec));
    work += copies * total;
    ++arrived;
  }

  std::mt19937 random;
  int64_t preemptions = 0, hits = 0, full = 0;
};

TEST(SchedulerTest, thousands_of_random_traces_end_with_right_answers_and_all_pages_returned) {
  Simulation simulation(20261124);
  for (int trace = 0; trace < 2500 && !HasFatalFailure(); ++trace) {
    SCOPED_TRACE(trace);
    simulation.run();
    if (HasFailure()) break;
  }
  // The traces did meet what they are to test.
  EXPECT_GT(simulation.preemptions, 1000);
  EXPECT_GT(simulation.hits, 1000);
  EXPECT_GT(simulation.full, 100);
}

SequenceSpec spec_of(int64_t prompt, int64_t generated, int64_t priority = 0,
                     std::string tenant = "") {
  SequenceSpec spec;
  for (int64_t i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>(i));
  spec.max_new_tokens = generated;
  spec.priority = priority;
  spec.tenant = std::move(tenant);
  return spec;
}

// Runs steps until `done` or `limit`; each generated token is `token`. Returns the steps taken.
template <typename Each>
int64_t run_steps(Scheduler& scheduler, int64_t limit, Each each) {
  for (int64_t step = 0; step < limit; ++step) {
    if (!each()) return step;
    const std::vector<Chunk> chunks = scheduler.schedule().chunks;
    scheduler.complete();
    for (const Chunk& chunk : chunks) {
      if (!chunk.samples) continue;
      const int32_t token = 1000;
      scheduler.append(*chunk.sequence, {&token, 1});
      if (chunk.sequence->generated() == chunk.sequence->spec.max_new_tokens)
        scheduler.finish(*chunk.sequence);
    }
  }
  return limit;
}

TEST(SchedulerTest, a_stream_of_urgent_requests_does_not_starve_another) {
  BlockPool pool(16, 4);
  Scheduler scheduler(
      pool, {.max_sequences = 2, .max_step_tokens = 8, .max_context = 32, .aging_steps = 4});
  std::set<SequenceId> urgent;
  for (int i = 0; i < 4; ++i) urgent.insert(scheduler.add(spec_of(4, 4, -5)).id);
  const Sequence* patient = &scheduler.add(spec_of(4, 4, 5));
  const int64_t steps = run_steps(scheduler, 1000, [&] {
    if (scheduler.stats().waiting < 4) scheduler.add(spec_of(4, 4, -5));
    return !patient->running;
  });
  EXPECT_LT(steps, 10 * 4 + 20);  // ten levels of four steps each, and a few to get in
}

TEST(SchedulerTest, tenants_share_what_one_of_them_could_take_alone) {
  BlockPool pool(64, 4);
  Scheduler scheduler(pool, {.max_sequences = 1, .max_step_tokens = 16, .max_context = 32});
  for (int i = 0; i < 40; ++i) scheduler.add(spec_of(4, 4, 0, "greedy"));
  for (int i = 0; i < 4; ++i) scheduler.add(spec_of(4, 4, 0, "modest"));
  // Both tenants' sequences are alike: the modest one's four are done after about eight.
  const int64_t one = 4;  // steps of one: the prompt's step gives the first token
  run_steps(scheduler, 9 * one, [] { return true; });
  int64_t modest = 0;
  Scheduler& rest = scheduler;
  run_steps(rest, 1000, [&] {
    const StepPlan& plan = rest.schedule();
    for (const Chunk& chunk : plan.chunks) modest += chunk.sequence->spec.tenant == "modest";
    rest.complete();
    return false;
  });
  EXPECT_EQ(modest, 0);
  EXPECT_GE(scheduler.stats().waiting, 30);
}

TEST(SchedulerTest, copies_share_the_pages_of_their_prompt_without_a_prefix_cache) {
  BlockPool pool(32, 4);
  Scheduler scheduler(
      pool,
      {.max_sequences = 4, .max_step_tokens = 64, .max_context = 32, .prefix_caching = false});
  SequenceSpec spec = spec_of(18, 4);
  spec.group = 7;
  std::vector<Sequence*> copies;
  for (int i = 0; i < 3; ++i) copies.push_back(&scheduler.add(spec));
  const auto step = [&] {
    const StepPlan& plan = scheduler.schedule();
    const int64_t tokens = plan.tokens;
    const std::vector<Chunk> chunks = plan.chunks;
    scheduler.complete();
    const int32_t token = 5;
    for (const Chunk& chunk : chunks) scheduler.append(*chunk.sequence, {&token, 1});
    return tokens;
  };
  EXPECT_EQ(step(), 18);         // the first computes the prompt, the others wait for it
  EXPECT_EQ(step(), 1 + 2 + 2);  // and compute what is not in a full page: tokens 16 and 17
  EXPECT_EQ(copies[1]->pages[3], copies[0]->pages[3]);
  EXPECT_NE(copies[1]->pages[4], copies[0]->pages[4]);
  EXPECT_EQ(pool.holders(copies[0]->pages[0]), 3);
  EXPECT_EQ(pool.in_use(), 4 + 3);
  for (Sequence* copy : copies) scheduler.finish(*copy);
  EXPECT_EQ(pool.in_use(), 0);
}

TEST(SchedulerTest, generating_sequences_go_on_while_a_long_prompt_is_taken_in_chunks) {
  BlockPool pool(64, 4);
  Scheduler scheduler(pool, {.max_sequences = 4,
                             .max_step_tokens = 32,
                             .max_prompt_chunk = 8,
                             .max_context = 128,
                             .prefix_caching = false});
  scheduler.add(spec_of(4, 60));
  run_steps(scheduler, 2, [] { return true; });
  const Sequence& late = scheduler.add(spec_of(80, 4));
  for (int step = 0; step < 10; ++step) {
    const StepPlan& plan = scheduler.schedule();
    ASSERT_EQ(plan.chunks.size(), 2u);
    EXPECT_EQ(plan.chunks[0].count, 1);
    EXPECT_EQ(plan.chunks[1].count, 8);
    const std::vector<Chunk> chunks = plan.chunks;
    scheduler.complete();
    const int32_t token = 1;
    for (const Chunk& chunk : chunks)
      if (chunk.samples) scheduler.append(*chunk.sequence, {&token, 1});
  }
  EXPECT_EQ(late.generated(), 1);
}

TEST(SchedulerTest, prompts_get_more_of_a_step_the_more_of_them_wait_for_free_places) {
  BlockPool pool(256, 4);
  Scheduler scheduler(pool, {.max_sequences = 4,
                             .max_step_tokens = 64,
                             .max_prompt_chunk = 8,
                             .max_context = 256,
                             .prefix_caching = false});
  scheduler.add(spec_of(4, 60));
  run_steps(scheduler, 2, [] { return true; });
  const auto prompt_tokens = [&] {
    const int64_t tokens = scheduler.schedule().tokens - 1;
    scheduler.discard();
    return tokens;
  };
  for (int waiting = 1; waiting <= 3; ++waiting) scheduler.add(spec_of(80, 4));
  EXPECT_EQ(prompt_tokens(), 8 * (1 + 2));  // the first starts now, two wait behind it
  for (int more = 0; more < 5; ++more) scheduler.add(spec_of(80, 4));
  EXPECT_EQ(prompt_tokens(), 8 * (1 + 1));  // two places are free, however many wait
}

TEST(SchedulerTest, a_cancelled_prompt_gives_its_pages_back_at_once) {
  BlockPool pool(64, 4);
  Scheduler scheduler(pool, {.max_sequences = 4, .max_step_tokens = 16, .max_context = 128});
  Sequence& sequence = scheduler.add(spec_of(100, 4));
  scheduler.schedule();
  scheduler.complete();
  EXPECT_EQ(pool.in_use(), 4);
  scheduler.finish(sequence);
  EXPECT_EQ(pool.in_use(), 0);
  EXPECT_TRUE(scheduler.idle());
}

TEST(SchedulerTest, what_can_never_run_is_refused) {
  BlockPool pool(4, 4);
  EXPECT_THROW(Scheduler(pool, {.max_sequences = 8, .max_step_tokens = 8}), Error);
  Scheduler scheduler(pool, {.max_sequences = 4, .max_step_tokens = 16, .max_context = 64});
  EXPECT_THROW(scheduler.add(spec_of(0, 4)), Error);
  EXPECT_THROW(scheduler.add(spec_of(4, 0)), Error);
  EXPECT_THROW(scheduler.add(spec_of(4, INT64_MAX)), Error);
  EXPECT_THROW(scheduler.add(spec_of(12, 5)), Error);  // 17 tokens, 16 in all pages
  EXPECT_NO_THROW(scheduler.add(spec_of(12, 4)));
}

}  // namespace
}  // namespace whit
