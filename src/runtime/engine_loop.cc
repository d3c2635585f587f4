#include "runtime/engine_loop.h"

#include <algorithm>

#include "base/checked.h"
#include "runtime/engine_loop_answer.h"

namespace whit {
namespace {

using Clock = RequestTimes::Clock;

// Where nobody says how much memory the cache may take.
constexpr int64_t kDefaultCacheBytes = int64_t{1} << 30;

int64_t page_count(const Executor& executor, const EngineLoopOptions& options) {
  int64_t page_bytes = executor.page_bytes(options.kv_dtype, options.page_tokens);
  if (options.draft != nullptr)
    page_bytes += options.draft->page_bytes(options.draft_kv_dtype, options.page_tokens);
  const int64_t context_pages = ceil_div(options.scheduler.max_context, options.page_tokens);
  int64_t pages = options.cache_bytes / page_bytes;
  if (options.cache_bytes == 0) {
    const int64_t quarter = ceil_div(options.scheduler.max_sequences * context_pages, 4);
    pages = std::max(context_pages, std::min(quarter, kDefaultCacheBytes / page_bytes));
  }
  if (pages < 1 || pages > INT32_MAX / options.page_tokens)
    throw Error(
        ErrorKind::kInvalidArgument,
        "a cache of {} bytes is {} pages of {} tokens; it needs at least one and at most {}",
        options.cache_bytes, pages, options.page_tokens, INT32_MAX / options.page_tokens);
  return pages;
}

EngineLoopOptions resolved(EngineLoopOptions options, const Executor& executor) {
  const int64_t multiple = kv_page_multiple(options.kv_dtype.type);
  if (options.page_tokens < multiple || options.page_tokens % multiple != 0)
    throw Error(ErrorKind::kInvalidArgument, "{} tokens a page; a multiple of {} is needed",
                options.page_tokens, multiple);
  // A guess may be taken back from the block behind the tail's current one, not from further.
  if (options.draft_tokens >= kKvBlockTokens && is_integer(options.kv_dtype.type))
    throw Error(ErrorKind::kInvalidArgument,
                "{} draft tokens; with {} keys and values at most {} can be taken back",
                options.draft_tokens, name(options.kv_dtype.type), kKvBlockTokens - 1);
  SchedulerOptions& scheduler = options.scheduler;
  scheduler.max_step_tokens = std::min(scheduler.max_step_tokens, executor.options().max_tokens);
  scheduler.max_context = std::min(scheduler.max_context, executor.options().max_context);
  return options;
}

const Node& final_norm_node(const Graph& graph) {
  for (NodeId id = graph.head().begin; id < graph.head().end; ++id)
    if (graph.node(id).op == Op::kRmsNorm) return graph.node(id);
  throw Error(ErrorKind::kUnsupported, "the model has no final norm");
}

}  // namespace

EngineLoop::EngineLoop(const Model& model, Executor& executor, const EngineLoopOptions& options,
                       Deliver deliver)
    : model_(model),
      executor_(executor),
      options_(resolved(options, executor)),
      deliver_(std::move(deliver)),
      stop_ids_(model.stop_ids()),
      pool_(page_count(executor, options_), options_.page_tokens, options_.hash_seed),
      cache_(executor.make_cache({.format = options_.kv_dtype,
                                  .pages = pool_.size(),
                                  .page_tokens = options_.page_tokens,
                                  .tails = options_.scheduler.max_sequences})),
      scheduler_(pool_, options_.scheduler),
      workspaces_(executor.pool().size()) {
  model.tokenizer();  // loaded now rather than by the first request
  const Node& norm = final_norm_node(model.graph());
  final_norm_ = model.weights().norm(norm);
  final_norm_eps_ = static_cast<float>(norm.eps);
  for (ChoiceWorkspace& workspace : workspaces_) workspace.argmax = executor.ops().argmax;
  if (1 + options_.draft_tokens > executor.options().max_logit_rows)
    throw Error(ErrorKind::kInvalidArgument, "{} draft tokens are more than {} rows of logits",
                options_.draft_tokens, executor.options().max_logit_rows);
  if (options_.draft != nullptr && options_.draft_tokens > 0)
    draft_.emplace(*options_.draft, pool_.size(), options_.page_tokens, options_.draft_kv_dtype);
  thread_ = std::thread([this] { run(); });
}

EngineLoop::~EngineLoop() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void EngineLoop::validate(const Request& request) const {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t vocab = executor_.config().vocab_size, context = max_context();
  if (prompt == 0)
    throw Error(ErrorKind::kInvalidArgument,
                "the prompt has no tokens; give at least one character");
  const int64_t longest = std::min(context, cache_tokens());
  if (prompt >= longest)
    throw Error(ErrorKind::kInvalidArgument,
                "the prompt has {} tokens, but the context is {}, answer included; shorten the "
                "prompt",
                prompt, longest);
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= vocab)
      throw Error(ErrorKind::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                  vocab);
  if (request.options.max_tokens < 1)
    throw Error(ErrorKind::kInvalidArgument,
                "max_tokens is {}; at least one token must be asked for",
                request.options.max_tokens);
  if (request.choices < 1 ||
      request.choices > options_.scheduler.max_sequences + options_.max_queue)
    throw Error(ErrorKind::kInvalidArgument, "{} choices are more than the {} that can wait",
                request.choices, options_.max_queue);
  request.options.sampling.validate(vocab);
  StopMatcher check(request.options.stop);
}

RequestId EngineLoop::submit(Request request) {
  validate(request);
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  request.options.max_tokens =
      std::min(request.options.max_tokens, std::min(max_context(), cache_tokens()) - prompt);
  RequestId id;
  {
    std::lock_guard lock(mutex_);
    const int64_t limit = options_.scheduler.max_sequences + options_.max_queue;
    if (live_ + request.choices > limit)
      throw Error(ErrorKind::kResource,
                  "the queue is full: {} answers are being generated or wait, {} may; try later",
                  live_, limit);
    live_ += request.choices;
    id = next_id_++;
    inbox_.submitted.emplace_back(id, std::move(request));
  }
  wake_.notify_one();
  return id;
}

void EngineLoop::cancel(RequestId id) {
  {
    std::lock_guard lock(mutex_);
    inbox_.cancelled.push_back(id);
  }
  wake_.notify_one();
}

void EngineLoop::exclusively(const std::function<void()>& work) {
  std::unique_lock lock(mutex_);
  ++visitors_;
  turn_.wait(lock, [&] { return parked_ && !visited_; });
  visited_ = true;
  const auto leave = [&] {
    lock.lock();
    visited_ = false;
    --visitors_;
    if (has_work()) parked_ = false;
    turn_.notify_all();
    wake_.notify_one();
  };
  lock.unlock();
  try {
    work();
  } catch (...) {
    leave();
    throw;
  }
  leave();
}

// Under the lock, while the engine's thread is parked.
bool EngineLoop::has_work() const {
  return !inbox_.submitted.empty() || !inbox_.cancelled.empty() || !scheduler_.idle();
}

void EngineLoop::run() {
  while (take_inbox()) {
    if (!scheduler_.idle()) step();
    if (!report_.events.empty() || report_.tokens > 0) send_report();
  }
}

bool EngineLoop::take_inbox() {
  Inbox taken;
  {
    std::unique_lock lock(mutex_);
    parked_ = true;
    turn_.notify_all();
    // A visitor who leaves ends the parking where there is work, so that a step comes next.
    wake_.wait(lock,
               [&] { return stop_ || (!visited_ && (visitors_ == 0 || !parked_) && has_work()); });
    parked_ = false;
    if (stop_) return false;
    std::swap(taken, inbox_);
  }
  for (auto& [id, request] : taken.submitted) start(id, std::move(request));
  for (const RequestId id : taken.cancelled) {
    const auto found = active_.find(id);
    if (found == active_.end()) continue;
    // The last answer to end takes the request with it.
    std::vector<Answer*> open;
    for (auto& answer : found->second->answers)
      if (!answer->ended) open.push_back(answer.get());
    for (Answer* answer : open) {
      if (answer->choice) answer->choice->finish(FinishReason::kCancelled, answer->event);
      answer->event.finish_reason = FinishReason::kCancelled;
      end_answer(*answer);
    }
  }
  return true;
}

void EngineLoop::start(RequestId id, Request request) {
  auto owner = std::make_unique<Active>();
  Active& active = *owner;
  active.id = id;
  active.request = std::move(request);
  active.times.submitted = Clock::now();
  active.left = active.request.choices;
  active_.emplace(id, std::move(owner));
  const Request& asked = active.request;
  for (int64_t i = 0; i < asked.choices; ++i) active.answers.push_back(std::make_unique<Answer>());
  const std::vector<std::unique_ptr<Answer>>& answers = active.answers;
  for (int64_t i = 0; i < asked.choices; ++i) {
    Answer& answer = *answers[i];
    answer.active = &active;
    answer.index = i;
    const bool last = active.left == 1;
    try {
      SequenceSpec spec;
      spec.prompt = asked.prompt;
      spec.max_new_tokens = asked.embedding ? 1 : asked.options.max_tokens;
      spec.priority = asked.priority;
      spec.tenant = asked.tenant;
      spec.salt = asked.cache_salt;
      const bool reads_prompt = asked.prompt_logprobs >= 0 || asked.prompt_logits;
      spec.reads_cache = !asked.embedding && !(i == 0 && reads_prompt);
      spec.group = asked.choices > 1 ? id : 0;
      if (asked.embedding)
        answer.sum.assign(executor_.config().hidden_size, 0.0);
      else
        answer.choice = std::make_unique<Choice>(asked, i, model_.tokenizer(), stop_ids_,
                                                 executor_.config().vocab_size);
      if (i == 0 && asked.prompt_logprobs >= 0) answer.prompt.resize(asked.prompt.size() - 1);
      if (i == 0 && asked.prompt_logits)
        answer.prompt_logits.resize(asked.prompt.size() * executor_.config().vocab_size);
      answer.sequence = &scheduler_.add(std::move(spec));
      // Where a grammar decides, guesses that do not know it are seldom right.
      answer.sequence->drafted = draft_ && answer.choice && !answer.choice->grammar();
      answers_[answer.sequence->id] = &answer;
    } catch (const std::exception& error) {
      answer.fail(error);
      end_answer(answer);
      if (last) return;  // the request is gone
    }
  }
}

void EngineLoop::step() {
  const StepPlan& plan = scheduler_.schedule();
  const auto now = Clock::now();
  report_.tokens += plan.tokens;
  report_.sequences = std::ssize(plan.chunks);
  if (plan.chunks.empty()) return;
  for (const Chunk& chunk : plan.chunks) {
    RequestTimes& times = answers_.at(chunk.sequence->id)->active->times;
    if (times.scheduled == Clock::time_point()) times.scheduled = now;
    report_.drafted += chunk.drafts;
    if (chunk.drafts > 0) ++report_.drafts;
  }
  const std::vector<Chunk> chunks = plan.chunks;
  try {
    if (draft_) draft_->propose(plan, executor_.config().vocab_size);
    batch_.build(plan, pool_.page_tokens());
    executor_.step(batch_.ids(), batch_.view(), cache_);
    embed_step(plan);
    sample_step(plan);
  } catch (const std::exception& error) {
    scheduler_.discard();
    for (const Chunk& chunk : chunks) {
      Answer& answer = *answers_.at(chunk.sequence->id);
      answer.fail(error);
      end_answer(answer);
    }
    return;
  }
  std::vector<int64_t> accepted;
  for (const Chunk& chunk : chunks) {
    const Answer& answer = *answers_.at(chunk.sequence->id);
    accepted.push_back(std::max<int64_t>(0, std::ssize(answer.sampled) - 1));
    if (accepted.back() > std::ssize(report_.accepted_at))
      report_.accepted_at.resize(accepted.back());
    for (int64_t i = 0; i < accepted.back(); ++i) ++report_.accepted_at[i];
  }
  if (draft_) DraftModel::accept(plan, accepted);
  scheduler_.complete(accepted);
  const auto done = Clock::now();
  for (const Chunk& chunk : chunks) {
    if (!chunk.samples) continue;
    Answer& answer = *answers_.at(chunk.sequence->id);
    RequestTimes& times = answer.active->times;
    if (times.first_token == Clock::time_point()) times.first_token = done;
    if (!answer.error.empty() || !answer.choice || answer.choice->finished()) {
      end_answer(answer);
      continue;
    }
    scheduler_.append(*answer.sequence, answer.sampled);
    answer.sampled.clear();
    event_of(answer);
  }
  want_drafts();
}

// What `answer` has to say after this step; sent with the report.
RequestEvent& EngineLoop::event_of(Answer& answer) {
  RequestEvent& event = answer.event;
  event.id = answer.active->id;
  event.context = answer.active->request.context;
  event.choice = answer.index;
  if (!answer.begun) {
    answer.begun = event.first = true;
    event.times = answer.active->times;
    event.prompt_details = std::move(answer.prompt);
    answer.prompt.clear();
    event.prompt_logits = std::move(answer.prompt_logits);
    answer.prompt_logits.clear();
  }
  report_.events.push_back(std::move(event));
  answer.event = RequestEvent();
  return report_.events.back();
}

void EngineLoop::end_answer(Answer& answer) {
  Active& active = *answer.active;
  answer.ended = true;
  RequestEvent& event = event_of(answer);
  event.finished = true;
  event.error = answer.error;
  event.failure = answer.failure;
  event.prompt_tokens = std::ssize(active.request.prompt);
  if (answer.choice) event.generated_tokens = std::ssize(answer.choice->output());
  if (answer.sequence != nullptr) {
    event.cached_tokens = std::max<int64_t>(0, answer.sequence->cached_tokens);
    event.preemptions = answer.sequence->preemptions;
    answers_.erase(answer.sequence->id);
    scheduler_.finish(*answer.sequence);
    answer.sequence = nullptr;
  }
  active.times.finished = Clock::now();
  event.times = active.times;
  event.last_choice = --active.left == 0;
  {
    std::lock_guard lock(mutex_);
    --live_;
  }
  if (event.last_choice) active_.erase(active.id);
}

// Of a draft model only the number of guesses: it makes them once the step's plan has room for
// them.
void EngineLoop::want_drafts() {
  if (options_.draft_tokens == 0) return;
  for (auto& [id, answer] : answers_) {
    Sequence& sequence = *answer->sequence;
    if (answer->choice && !answer->choice->grammar() &&
        sequence.computed + 1 == sequence.length() && sequence.generated() > 0) {
      if (draft_)
        sequence.draft.assign(options_.draft_tokens, 0);
      else
        sequence.draft = answer->choice->look_up_draft(sequence.tokens, options_.draft_tokens);
    }
  }
}

void EngineLoop::send_report() {
  report_.scheduler = scheduler_.stats();
  report_.pages = pool_.size();
  report_.pages_used = pool_.in_use();
  deliver_(std::move(report_));
  report_ = StepReport();
}

}  // namespace whit
