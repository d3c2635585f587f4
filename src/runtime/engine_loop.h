// The engine at work: one thread that owns scheduler, cache and executor, and serves requests that
// other threads hand over.
//
// submit() and cancel() only touch a queue, from any thread. Results are delivered from the
// engine's thread, once a step, for all requests together; the receiver must return at once. A
// cancelled request ends before the next step, also in the middle of its prompt. A request that
// fails ends alone, with an event that says why.
//
// The answer of a greedy or seeded request depends on nothing but the request: not on what runs
// beside it, the cache, the chunks of its prompt or guessed drafts.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <unordered_map>

#include "engine/executor.h"
#include "engine/model.h"
#include "runtime/batch.h"
#include "runtime/choice.h"
#include "runtime/draft_model.h"
#include "runtime/request.h"

namespace whit {

struct EngineLoopOptions {
  SchedulerOptions scheduler;
  int64_t max_queue = 256;  // sequences that wait while scheduler.max_sequences run
  int64_t cache_bytes = 0;  // for keys and values; 0: for a quarter of the longest contexts at once
  int64_t page_tokens = 32;   // a multiple of kv_page_multiple(kv_dtype.type)
  int64_t draft_tokens = 0;   // guessed by prompt lookup and checked together; 0: none
  Executor* draft = nullptr;  // of a smaller model, which guesses instead; must outlive the loop
  KvFormat draft_kv_dtype;
  KvFormat kv_dtype;
  uint64_t hash_seed = 0;
};

// What a step did, and how things stand after it.
struct StepReport {
  std::vector<RequestEvent> events;
  SchedulerStats scheduler;
  int64_t pages_used = 0, pages = 0;
  int64_t tokens = 0;                // of this step
  int64_t sequences = 0;             // that they belong to
  int64_t drafts = 0, drafted = 0;   // sequences with guesses, tokens guessed
  std::vector<int64_t> accepted_at;  // drafts whose guess at this place was right
};

class EngineLoop {
 public:
  using Deliver = std::function<void(StepReport)>;

  // The model and the executor must outlive the loop. Starts the thread. `deliver` must not throw.
  EngineLoop(const Model& model, Executor& executor, const EngineLoopOptions& options,
             Deliver deliver);
  // Drops what still runs, without events.
  ~EngineLoop();
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // Throws kInvalidArgument for a request that cannot be served, whatever else runs, and kResource
  // where the queue is full.
  RequestId submit(Request request);
  // Its choices end with kCancelled. An id that is done or unknown is ignored.
  void cancel(RequestId id);

  // Runs `work` in the calling thread between two steps: for whoever needs the executor or its
  // threads for itself. While several wait, steps go on between them. Not from `deliver`.
  void exclusively(const std::function<void()>& work);

  int64_t max_context() const { return options_.scheduler.max_context; }
  int64_t cache_tokens() const { return pool_.size() * pool_.page_tokens(); }
  // Keys and values, of a draft model too.
  int64_t cache_bytes() const { return cache_.bytes() + (draft_ ? draft_->cache_bytes() : 0); }
  const EngineLoopOptions& options() const { return options_; }

 private:
  struct Active;  // a request that the scheduler knows
  struct Answer;  // one of its choices
  struct Inbox {
    std::vector<std::pair<RequestId, Request>> submitted;
    std::vector<RequestId> cancelled;
  };

  void validate(const Request& request) const;
  void run();
  bool take_inbox();  // false: stop
  bool has_work() const;
  void start(RequestId id, Request request);
  void step();
  // Rows whose logits are wanted: after the known tokens and drafts of what samples, and after each
  // token of a prompt whose log-probabilities are.
  struct SampleTask {
    Answer* answer;
    const Chunk* chunk;
    int64_t first_row, count;
    int64_t prompt_position;  // −1: samples
    std::span<const uint64_t> allowed;
  };
  void sample_step(const StepPlan& plan);
  void sample(std::vector<SampleTask>& tasks);
  // Where the logits are, if they need not come here. draw_on_device leaves the tasks that do.
  void take_likeliest(std::span<const SampleTask> tasks);
  void draw_on_device(std::vector<SampleTask>& tasks);
  void sample_logits(std::span<const SampleTask> tasks);
  template <typename Take>
  void take_tokens(Answer& answer, Take take);
  void embed_step(const StepPlan& plan);
  RequestEvent& event_of(Answer& answer);
  void end_answer(Answer& answer);
  void want_drafts();
  void send_report();

  const Model& model_;
  Executor& executor_;
  EngineLoopOptions options_;
  Deliver deliver_;
  std::vector<int32_t> stop_ids_;
  BlockPool pool_;
  KvCache cache_;
  Scheduler scheduler_;
  Tensor final_norm_;
  float final_norm_eps_ = 0;

  // The engine thread's.
  std::unordered_map<RequestId, std::unique_ptr<Active>> active_;
  std::unordered_map<SequenceId, Answer*> answers_;
  std::optional<DraftModel> draft_;
  StepBatch batch_;
  StepReport report_;
  std::vector<ChoiceWorkspace> workspaces_;  // one a thread

  // Shared.
  std::mutex mutex_;
  std::condition_variable wake_, turn_;
  Inbox inbox_;
  bool stop_ = false;
  bool parked_ = false;   // the engine's thread is between steps and lets visitors in
  bool visited_ = false;  // one of them is at work
  int64_t visitors_ = 0;  // at work or waiting for it
  int64_t live_ = 0;      // choices submitted and not ended
  RequestId next_id_ = 1;
  std::thread thread_;
};

}  // namespace whit
