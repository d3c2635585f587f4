#include "api/requests.h"

#include <condition_variable>
#include <deque>
#include <random>

#include "base/progress.h"

namespace whit {
namespace {

// SchedulerOptions::max_prompt_chunk, `whit serve`'s default, so that streams stay steady.
constexpr int64_t kPromptChunk = 16;
// How long a waiting caller goes without looking for Ctrl-C and its own `cancelled`.
constexpr std::chrono::milliseconds kLook{20};

uint64_t random_seed() { return uint64_t{std::random_device()()} << 32 | std::random_device()(); }

EngineLoopOptions loop_options(const LoadedModel& loaded, const BuildConfig& config) {
  EngineLoopOptions options;
  options.scheduler = {.max_sequences = config.max_batch_size,
                       .max_step_tokens = loaded.executor->options().max_tokens,
                       .max_prompt_chunk = kPromptChunk,
                       .max_context = loaded.executor->options().max_context,
                       .prefix_caching = config.prefix_caching};
  // A program's own requests wait for as long as it likes; a limit is for clients.
  options.max_queue = int64_t{1} << 40;
  options.kv_dtype = loaded.kv_format(config.kv_cache_dtype);
  options.hash_seed = random_seed();
  return options;
}

Request request_of(std::vector<int32_t> prompt, const SamplingParams& params) {
  Request request;
  request.prompt = std::move(prompt);
  SamplerOptions& sampling = request.options.sampling;
  sampling.temperature = static_cast<float>(params.temperature);
  sampling.top_k = params.top_k;
  sampling.top_p = static_cast<float>(params.top_p);
  sampling.min_p = static_cast<float>(params.min_p);
  sampling.repetition_penalty = static_cast<float>(params.repetition_penalty);
  sampling.presence_penalty = static_cast<float>(params.presence_penalty);
  sampling.frequency_penalty = static_cast<float>(params.frequency_penalty);
  sampling.seed = params.seed ? *params.seed : random_seed();
  sampling.logit_bias = params.logit_bias;
  sampling.logprobs = params.logprobs;
  request.options.max_tokens = params.max_tokens;
  request.options.stop = params.stop;
  request.options.ignore_eos = params.ignore_eos;
  request.stop_token_ids = params.stop_token_ids;
  request.choices = params.n;
  request.seed_stride = 1;
  request.keep_stop_text = params.include_stop_str_in_output;
  request.skip_special_tokens = params.skip_special_tokens;
  request.logits = params.return_generation_logits;
  request.prompt_logits = params.return_context_logits;
  return request;
}

struct Client {
  Requests::OnUpdate on_update;
  std::vector<int64_t> batch_size;  // of each answer's steps, the largest so far
};

double seconds(RequestTimes::Clock::time_point from, RequestTimes::Clock::time_point to) {
  const RequestTimes::Clock::time_point unset;
  return from == unset || to == unset ? 0 : std::chrono::duration<double>(to - from).count();
}

RequestUpdate update_of(RequestEvent&& event, int64_t vocab) {
  RequestUpdate update;
  update.index = event.choice;
  update.text = std::move(event.text);
  update.token_ids = std::move(event.token_ids);
  for (const TokenDetail& detail : event.details) {
    TokenLogprobs logprobs{.chosen = {detail.token, detail.logprob}, .top = {}};
    for (const TokenLogprob& each : detail.top) logprobs.top.push_back({each.token, each.logprob});
    update.logprobs.push_back(std::move(logprobs));
  }
  const auto rows = [&](std::vector<float>& values) {
    if (values.empty()) return Array();
    return Array{{std::ssize(values) / vocab, vocab}, std::move(values)};
  };
  update.generation_logits = rows(event.logits);
  update.context_logits = rows(event.prompt_logits);
  update.finished = event.finished;
  if (!event.finished) return update;
  update.last = event.last_choice;
  update.finish_reason = std::string(name(event.finish_reason));
  update.stop_reason = std::move(event.stop_reason);
  update.error = std::move(event.failure);
  update.reused_tokens = event.cached_tokens;
  update.queue_s = seconds(event.times.submitted, event.times.scheduled);
  update.prefill_s = seconds(event.times.scheduled, event.times.first_token);
  update.decode_s = seconds(event.times.first_token, event.times.finished);
  return update;
}

// Called by the engine's thread.
void deliver(StepReport report, int64_t vocab) {
  for (RequestEvent& event : report.events) {
    const auto client = std::static_pointer_cast<Client>(event.context);
    int64_t& batch_size = client->batch_size[event.choice];
    if (!event.token_ids.empty()) batch_size = std::max(batch_size, report.sequences);
    RequestUpdate update = update_of(std::move(event), vocab);
    update.batch_size = batch_size;
    update.waiting = report.scheduler.waiting;
    client->on_update(std::move(update));
  }
}

// Updates on their way from the engine's thread to the one that waits for them.
class Mailbox {
 public:
  void put(size_t request, RequestUpdate update) {
    {
      const std::lock_guard lock(mutex_);
      updates_.emplace_back(request, std::move(update));
    }
    came_.notify_one();
  }
  std::optional<std::pair<size_t, RequestUpdate>> take() {
    std::unique_lock lock(mutex_);
    if (!came_.wait_for(lock, kLook, [&] { return !updates_.empty(); })) return std::nullopt;
    auto first = std::move(updates_.front());
    updates_.pop_front();
    return first;
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::pair<size_t, RequestUpdate>> updates_;
};

template <typename T>
void append(std::vector<T>& to, std::vector<T>& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

void add(RequestUpdate&& update, RequestOutput& request) {
  CompletionOutput& output = request.outputs[update.index];
  output.text += update.text;
  append(output.token_ids, update.token_ids);
  append(output.logprobs, update.logprobs);
  append(output.generation_logits.values, update.generation_logits.values);
  if (!update.context_logits.shape.empty())
    request.context_logits = std::move(update.context_logits);
  if (!update.finished) return;
  output.finish_reason = std::move(update.finish_reason);
  output.stop_reason = std::move(update.stop_reason);
  request.reused_tokens = std::max(request.reused_tokens, update.reused_tokens);
  request.prefill_s = std::max(request.prefill_s, update.prefill_s);
  request.decode_s = std::max(request.decode_s, update.decode_s);
}

// What is still held back of an answer that ends here: a part of a stop text or of a character.
std::string held_back(const CompletionOutput& output, const SamplingParams& params,
                      const Tokenizer& tokenizer) {
  StreamDecoder decoder(tokenizer, params.skip_special_tokens);
  StopMatcher matcher(params.stop,
                      params.include_stop_str_in_output ? StopText::kKeep : StopText::kRemove);
  std::string text;
  for (const int32_t id : output.token_ids) text += matcher.push(decoder.push(id));
  text += matcher.push(decoder.flush());
  if (!matcher.stopped()) text += matcher.finish();
  return text.substr(std::min(text.size(), output.text.size()));
}

}  // namespace

Requests::Requests(const LoadedModel& loaded, const BuildConfig& config)
    : loaded_(loaded), options_(loop_options(loaded, config)) {}

EngineLoop& Requests::loop() {
  const std::lock_guard lock(mutex_);
  if (loop_ == nullptr)
    loop_ =
        std::make_unique<EngineLoop>(loaded_.model, *loaded_.executor, options_,
                                     [vocab = loaded_.model.config().vocab_size](
                                         StepReport report) { deliver(std::move(report), vocab); });
  return *loop_;
}

RequestId Requests::submit(std::vector<int32_t> prompt, const SamplingParams& params,
                           OnUpdate on_update) {
  Request request = request_of(std::move(prompt), params);
  if (params.n < 1 || params.n > 1024)
    throw Error(ErrorKind::kInvalidArgument, "n is {}, expected 1 … 1024 answers", params.n);
  request.context = std::make_shared<Client>(
      Client{std::move(on_update), std::vector<int64_t>(static_cast<size_t>(params.n), 0)});
  return loop().submit(std::move(request));
}

void Requests::cancel(RequestId id) { loop().cancel(id); }

std::vector<RequestOutput> Requests::answer(std::vector<std::vector<int32_t>> prompts,
                                            const SamplingParams& params,
                                            const StreamCallbacks& callbacks) {
  const auto mailbox = std::make_shared<Mailbox>();
  // However this function is left; what has ended is not affected.
  struct Guard {
    ~Guard() {
      for (const RequestId id : ids) requests.cancel(id);
    }
    Requests& requests;
    std::vector<RequestId> ids;
  } guard{*this, {}};
  std::vector<RequestOutput> outputs(prompts.size());
  const auto stopped = [&] { return callbacks.cancelled && callbacks.cancelled(); };
  bool cancelled = stopped();
  for (size_t i = 0; i < prompts.size(); ++i) {
    outputs[i].prompt_token_ids = prompts[i];
    outputs[i].outputs.resize(static_cast<size_t>(std::max<int64_t>(params.n, 0)));
    if (cancelled) continue;
    guard.ids.push_back(submit(std::move(prompts[i]), params, [mailbox, i](RequestUpdate update) {
      mailbox->put(i, std::move(update));
    }));
  }
  const auto show = [&](const RequestUpdate& update) {
    if (callbacks.on_update && !(update.text.empty() && update.token_ids.empty()))
      callbacks.on_update(
          {.text = update.text, .token_ids = update.token_ids, .index = update.index});
  };
  for (size_t left = prompts.size(); left > 0 && !cancelled; cancelled = left > 0 && stopped()) {
    check_interrupt();
    auto taken = mailbox->take();
    if (!taken) continue;
    auto& [i, update] = *taken;
    if (update.error) std::rethrow_exception(update.error);
    show(update);
    if (update.last) --left;
    add(std::move(update), outputs[i]);
  }
  const int64_t vocab = loaded_.model.config().vocab_size;
  for (RequestOutput& request : outputs)
    for (size_t k = 0; k < request.outputs.size(); ++k) {
      CompletionOutput& output = request.outputs[k];
      if (output.finish_reason.empty()) {
        // The engine may be a step ahead of what was shown; the answer ends with what was.
        RequestUpdate rest;
        rest.index = static_cast<int64_t>(k);
        rest.text = held_back(output, params, loaded_.model.tokenizer());
        show(rest);
        output.text += rest.text;
        output.finish_reason = name(FinishReason::kCancelled);
      }
      if (params.return_generation_logits)
        output.generation_logits.shape = {std::ssize(output.token_ids), vocab};
    }
  return outputs;
}

void Requests::exclusively(const std::function<void()>& work) {
  std::unique_lock lock(mutex_);
  if (loop_ == nullptr) return work();
  lock.unlock();
  loop_->exclusively(work);
}

}  // namespace whit
