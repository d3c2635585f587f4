#include "runtime/scheduler.h"

#include <algorithm>
#include <tuple>

#include "base/checked.h"
#include "base/error.h"

namespace whit {
namespace {

constexpr int64_t kGeneratedTokenWeight = 2;  // a prompt's token weighs 1

}  // namespace

Scheduler::Scheduler(BlockPool& pool, const SchedulerOptions& options)
    : pool_(pool), options_(options) {
  if (options.max_sequences < 1 || options.max_step_tokens <= options.max_sequences ||
      options.max_context < 2 || options.aging_steps < 1 || options.max_prompt_chunk < 0 ||
      pool.size() < 1)
    throw Error(ErrorKind::kInvalidArgument,
                "scheduler: {} sequences, {} tokens a step, a context of {} and {} pages cannot "
                "work together; a step must hold more tokens than there are sequences",
                options.max_sequences, options.max_step_tokens, options.max_context, pool.size());
  for (int64_t place = options.max_sequences; place-- > 0;) free_places_.push_back(place);
}

Scheduler::~Scheduler() {
  for (auto& [id, sequence] : sequences_) release_pages(*sequence);
}

int64_t Scheduler::pages_for(int64_t tokens) const { return ceil_div(tokens, pool_.page_tokens()); }

Sequence& Scheduler::add(SequenceSpec spec) {
  const auto prompt = static_cast<int64_t>(spec.prompt.size());
  if (prompt < 1 || spec.max_new_tokens < 1 ||
      spec.max_new_tokens > options_.max_context - prompt ||
      pages_for(prompt + spec.max_new_tokens) > pool_.size())
    throw Error(ErrorKind::kInvalidArgument,
                "a prompt of {} tokens and {} new ones do not fit: a sequence has at most {} "
                "tokens and all pages together hold {}",
                prompt, spec.max_new_tokens, options_.max_context,
                pool_.size() * pool_.page_tokens());
  auto sequence = std::make_unique<Sequence>();
  Sequence& result = *sequence;
  result.id = next_id_++;
  result.tokens.reserve(prompt + std::min<int64_t>(spec.max_new_tokens, 4096));
  result.tokens = spec.prompt;
  result.spec = std::move(spec);
  result.waiting_since = step_;

  const auto [found, is_new] = tenants_.try_emplace(result.spec.tenant);
  Tenant& tenant = found->second;
  if (tenant.sequences++ == 0) {
    double least = -1;
    for (const auto& [name, other] : tenants_)
      if (&other != &tenant && other.sequences > 0 && (least < 0 || other.service < least))
        least = other.service;
    tenant.service = std::max(tenant.service, least);
  }
  waiting_.push_back(&result);
  sequences_.emplace(result.id, std::move(sequence));
  return result;
}

// By the priorities given, for those that run: a total order that does not change, so that the
// first of them always progresses.
bool Scheduler::more_urgent(const Sequence& a, const Sequence& b) const {
  return std::tie(a.spec.priority, a.id) < std::tie(b.spec.priority, b.id);
}

// A running sequence of the same group whose prompt is in its pages; must_wait where one is about
// to be.
const Sequence* Scheduler::leader_of(const Sequence& sequence, bool& must_wait) const {
  must_wait = false;
  if (sequence.spec.group == 0) return nullptr;
  for (const Sequence* other : running_) {
    if (other->spec.group != sequence.spec.group) continue;
    if (other->computed >= other->prompt_length()) {
      must_wait = false;
      return other;
    }
    must_wait = true;
  }
  return nullptr;
}

Sequence* Scheduler::most_urgent_waiting() {
  Sequence* best = nullptr;
  std::tuple<int64_t, double, SequenceId> best_key;
  for (Sequence* sequence : waiting_) {
    bool must_wait;
    leader_of(*sequence, must_wait);
    if (must_wait) continue;
    const int64_t age = (step_ - sequence->waiting_since) / options_.aging_steps;
    const std::tuple key(sequence->spec.priority - age, tenants_[sequence->spec.tenant].service,
                         sequence->id);
    if (best == nullptr || key < best_key) {
      best = sequence;
      best_key = key;
    }
  }
  return best;
}

void Scheduler::attach_prefix(Sequence& sequence) {
  // The last token is always computed: its logits are wanted.
  const int64_t page = pool_.page_tokens();
  bool must_wait;
  const Sequence* leader = leader_of(sequence, must_wait);
  if (leader != nullptr && sequence.spec.reads_cache) {
    const int64_t shared =
        std::min((sequence.prompt_length() - 1) / page, static_cast<int64_t>(leader->pages.size()));
    sequence.pages.assign(leader->pages.begin(), leader->pages.begin() + shared);
    for (const PageId id : sequence.pages) pool_.hold(id);
    sequence.published = std::min(leader->published, shared);
  } else if (options_.prefix_caching && sequence.spec.reads_cache) {
    const int64_t most = (sequence.length() - 1) / page;
    sequence.pages = pool_.find_prefix(sequence.tokens, sequence.spec.salt, most);
    sequence.published = static_cast<int64_t>(sequence.pages.size());
    stats_.prefix_queries += sequence.length();
    stats_.prefix_hits += sequence.published * page;
  }
  sequence.computed = static_cast<int64_t>(sequence.pages.size()) * page;
}

bool Scheduler::admit(Sequence& sequence) {
  if (options_.policy == SchedulerPolicy::kGuaranteedNoEvict) {
    const int64_t needed = pages_for(sequence.longest());
    if (reserved_pages_ + needed > pool_.size()) return false;
    attach_prefix(sequence);
    reserved_pages_ += needed;
  } else {
    attach_prefix(sequence);
    // Running sequences keep room for their prompts and at least one page more: what is admitted
    // now is not to be preempted at once.
    const auto missing = [&](const Sequence& each) {
      return pages_for(each.length() + 1) - static_cast<int64_t>(each.pages.size());
    };
    int64_t needed = missing(sequence);
    for (const Sequence* each : running_) needed += std::max<int64_t>(1, missing(*each));
    if (needed > pool_.available() && !running_.empty()) {
      release_pages(sequence);
      return false;
    }
  }
  if (sequence.cached_tokens < 0)
    sequence.cached_tokens = std::min(sequence.computed, sequence.prompt_length());
  sequence.running = true;
  sequence.place = free_places_.back();
  free_places_.pop_back();
  std::erase(waiting_, &sequence);
  running_.insert(
      std::upper_bound(running_.begin(), running_.end(), &sequence,
                       [&](const Sequence* a, const Sequence* b) { return more_urgent(*a, *b); }),
      &sequence);
  return true;
}

// Pages for the first `tokens` tokens, as far as there are any.
bool Scheduler::grow(Sequence& sequence, int64_t tokens) {
  const int64_t wanted = pages_for(tokens);
  if (wanted - static_cast<int64_t>(sequence.pages.size()) > pool_.available()) return false;
  while (static_cast<int64_t>(sequence.pages.size()) < wanted)
    sequence.pages.push_back(*pool_.allocate());
  return true;
}

// As grow(), taking pages of less urgent sequences where none is left. False where `sequence` is
// itself the least urgent: it has lost its pages then.
bool Scheduler::make_room(Sequence& sequence, int64_t tokens) {
  while (!grow(sequence, tokens)) {
    Sequence& victim = *running_.back();
    preempt(victim);
    if (&victim == &sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence& sequence) {
  // Its chunk may be planned already; the step then goes without it.
  std::erase_if(plan_.chunks, [&](const Chunk& chunk) {
    if (chunk.sequence == &sequence) plan_.tokens -= chunk.count;
    return chunk.sequence == &sequence;
  });
  release_pages(sequence);
  sequence.draft.clear();
  sequence.running = false;
  give_place_back(sequence);
  ++sequence.preemptions;
  ++stats_.preemptions;
  ++plan_.preempted;
  std::erase(running_, &sequence);
  waiting_.push_back(&sequence);
}

void Scheduler::release_pages(Sequence& sequence) {
  // The last first: of a cached prefix the end is given up before the beginning.
  for (auto id = sequence.pages.rbegin(); id != sequence.pages.rend(); ++id) pool_.release(*id);
  sequence.pages.clear();
  sequence.computed = sequence.published = 0;
}

void Scheduler::give_place_back(Sequence& sequence) {
  if (sequence.place >= 0) free_places_.push_back(sequence.place);
  sequence.place = -1;
}

void Scheduler::plan_chunk(Sequence& sequence, int64_t count, int64_t drafts) {
  const int64_t known = sequence.length() - sequence.computed;
  plan_.chunks.push_back({&sequence, sequence.computed, count, drafts, count - drafts == known});
  plan_.tokens += count;
}

void Scheduler::plan_decodes() {
  // By index: preemption takes sequences from the end, never one that is more urgent.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.length() - sequence.computed != 1) continue;
    // A draft takes no page from anybody, and no token that a generating sequence waits for.
    const int64_t others = static_cast<int64_t>(running_.size() - i) - 1;
    const int64_t room = options_.max_step_tokens - plan_.tokens - others - 1;
    const int64_t left = sequence.longest() - sequence.length() - 1;
    const auto drafts = std::clamp<int64_t>(static_cast<int64_t>(sequence.draft.size()), 0,
                                            std::max<int64_t>(0, std::min(room, left)));
    sequence.draft.resize(drafts);
    if (drafts > 0 && grow(sequence, sequence.length() + drafts)) {
      plan_chunk(sequence, 1 + drafts, drafts);
      continue;
    }
    sequence.draft.clear();
    if (make_room(sequence, sequence.length())) plan_chunk(sequence, 1, 0);
  }
}

void Scheduler::plan_prompts(int64_t room) {
  for (size_t i = 0; i < running_.size() && room > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int64_t left = sequence.length() - sequence.computed;
    const bool planned =
        std::any_of(plan_.chunks.begin(), plan_.chunks.end(),
                    [&](const Chunk& chunk) { return chunk.sequence == &sequence; });
    if (planned || left < 1) continue;
    const int64_t count = std::min(left, room);
    if (!make_room(sequence, sequence.computed + count)) return;
    plan_chunk(sequence, count, 0);
    room -= count;
  }
}

const StepPlan& Scheduler::schedule() {
  ++step_;
  plan_.chunks.clear();
  plan_.tokens = plan_.preempted = 0;
  plan_decodes();
  const auto prompt_room = [&] {
    const int64_t room = options_.max_step_tokens - plan_.tokens;
    const auto generating = static_cast<int64_t>(plan_.chunks.size());
    if (options_.max_prompt_chunk == 0 || generating == 0) return room;
    const int64_t places = options_.max_sequences - static_cast<int64_t>(running_.size());
    const auto waiting = static_cast<int64_t>(waiting_.size());
    const int64_t behind = std::max<int64_t>(0, std::min(places, waiting) - 1);
    const int64_t share = std::max(options_.max_prompt_chunk, plan_.tokens * 3 / 2);
    return std::min(room, share * (generating + behind) / generating);
  };
  const int64_t room = prompt_room(), decode_tokens = plan_.tokens;
  plan_prompts(room);
  while (plan_.preempted == 0 && static_cast<int64_t>(running_.size()) < options_.max_sequences) {
    const int64_t left = room - (plan_.tokens - decode_tokens);
    if (left <= 0) break;
    Sequence* next = most_urgent_waiting();
    if (next == nullptr || !admit(*next)) break;
    plan_prompts(left);
  }
  for (const Chunk& chunk : plan_.chunks) {
    const bool generating = chunk.start >= chunk.sequence->prompt_length();
    tenants_[chunk.sequence->spec.tenant].service +=
        static_cast<double>(chunk.count * (generating ? kGeneratedTokenWeight : 1));
  }
  return plan_;
}

void Scheduler::complete(std::span<const int64_t> accepted) {
  for (size_t i = 0; i < plan_.chunks.size(); ++i) {
    const Chunk& chunk = plan_.chunks[i];
    Sequence& sequence = *chunk.sequence;
    sequence.computed = chunk.start + chunk.count - chunk.drafts;
    if (i < accepted.size()) sequence.computed += accepted[i];
    // Drafts beyond those accepted were written after the computed tokens and are overwritten.
    const int64_t page = pool_.page_tokens();
    if (!options_.prefix_caching) continue;
    std::vector<int32_t> with_draft;
    std::span<const int32_t> tokens = sequence.tokens;
    if (chunk.drafts > 0 && (sequence.published + 1) * page <= sequence.computed) {
      with_draft = sequence.tokens;
      with_draft.insert(with_draft.end(), sequence.draft.begin(), sequence.draft.end());
      tokens = with_draft;
    }
    while ((sequence.published + 1) * page <= sequence.computed) {
      const int64_t at = sequence.published++;
      sequence.pages[at] = pool_.publish(sequence.pages[at], at == 0 ? -1 : sequence.pages[at - 1],
                                         tokens.subspan(at * page, page), sequence.spec.salt);
    }
  }
  for (const Chunk& chunk : plan_.chunks) chunk.sequence->draft.clear();
  plan_.chunks.clear();
}

void Scheduler::discard() {
  for (const Chunk& chunk : plan_.chunks) chunk.sequence->draft.clear();
  plan_.chunks.clear();
}

void Scheduler::append(Sequence& sequence, std::span<const int32_t> tokens) {
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
}

void Scheduler::finish(Sequence& sequence) {
  if (sequence.running && options_.policy == SchedulerPolicy::kGuaranteedNoEvict)
    reserved_pages_ -= pages_for(sequence.longest());
  release_pages(sequence);
  give_place_back(sequence);
  std::erase(running_, &sequence);
  std::erase(waiting_, &sequence);
  const auto tenant = tenants_.find(sequence.spec.tenant);
  --tenant->second.sequences;
  // Counters of who is away matter only while somebody is here; the map must not grow with every
  // name that a client ever sent.
  if (tenants_.size() > 1024 || sequences_.size() == 1)
    std::erase_if(tenants_, [](const auto& entry) { return entry.second.sequences == 0; });
  sequences_.erase(sequence.id);
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = stats_;
  stats.running = static_cast<int64_t>(running_.size());
  stats.waiting = static_cast<int64_t>(waiting_.size());
  return stats;
}

}  // namespace whit
