#include "runtime/generator.h"

#include <algorithm>
#include <chrono>

#include "base/progress.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double rate(int64_t tokens, double seconds) {
  return tokens > 0 && seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

}  // namespace

std::string_view name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    default:
      return "cancelled";
  }
}

double Generation::prefill_tokens_per_s() const {
  return rate(prompt_tokens - reused_tokens, prefill_s);
}
double Generation::decode_tokens_per_s() const {
  return rate(static_cast<int64_t>(token_ids.size()) - 1, decode_s);
}

Generator::Generator(Executor& executor, const Tokenizer& tokenizer, std::vector<int32_t> stop_ids,
                     KvFormat kv_dtype)
    : executor_(executor),
      tokenizer_(tokenizer),
      stop_ids_(std::move(stop_ids)),
      kv_dtype_(std::move(kv_dtype)) {}

void Generator::prepare_cache(std::span<const int32_t> prompt, int64_t capacity) {
  if (!cache_ || cache_->page_tokens() < capacity) {
    // A conversation grows: twice the room, so that its beginning is computed again only now and
    // then.
    const int64_t wanted = std::min(2 * capacity, executor_.options().max_context);
    cache_.reset();
    cached_.clear();
    cache_.emplace(executor_.make_cache(1, std::max(wanted, capacity), kv_dtype_));
  }
  const auto common =
      std::mismatch(cached_.begin(), cached_.end(), prompt.begin(), prompt.end()).first;
  // The last token of a prompt is always computed: its logits are wanted.
  cached_.resize(cache_->keepable(
      std::min<int64_t>(common - cached_.begin(), static_cast<int64_t>(prompt.size()) - 1)));
}

void Generator::step(std::span<const int32_t> ids) {
  const int64_t starts[] = {static_cast<int64_t>(cached_.size())},
                counts[] = {static_cast<int64_t>(ids.size())};
  const ContiguousBatch batch(starts, counts, cache_->page_tokens());
  executor_.step(ids, batch.view(), *cache_);
  cached_.insert(cached_.end(), ids.begin(), ids.end());
  last_row_ = static_cast<int32_t>(ids.size()) - 1;
}

SampledToken Generator::choose(Sampler& sampler, std::span<const int32_t> prompt,
                               std::span<const int32_t> output,
                               const GenerationCallbacks& callbacks) {
  const std::span<const int32_t> row(&last_row_, 1);
  // On a GPU the token is chosen where the logits are, if nothing else of them is wanted.
  if (executor_.samples() && sampler.params().logprobs < 0 && !callbacks.on_logits) {
    int32_t token = -1;
    if (sampler.params().plain_argmax()) {
      executor_.argmax(row, {&token, 1});
    } else {
      const RowDraw draw = sampler.next_draw(prompt, output, workspace_);
      executor_.sample(row, {&draw, 1}, {&token, 1});
    }
    if (token >= 0) {
      sampler.drawn();
      return {.token = token};
    }
  }
  const float* logits = executor_.logits(row);
  logits_.assign(logits, logits + executor_.config().vocab_size);
  if (callbacks.on_logits) callbacks.on_logits(logits_);
  return sampler.sample(logits_, prompt, output);
}

bool Generator::prefill(std::span<const int32_t> prompt, const GenerationCallbacks& callbacks) {
  while (cached_.size() < prompt.size()) {
    check_interrupt();
    if (callbacks.cancelled && callbacks.cancelled()) return false;
    const auto rest = prompt.subspan(cached_.size());
    step(rest.first(std::min<size_t>(rest.size(), executor_.options().max_tokens)));
  }
  return true;
}

Generation Generator::generate(std::span<const int32_t> prompt, const GenerationOptions& options,
                               const GenerationCallbacks& callbacks) {
  const int64_t context = executor_.options().max_context;
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  if (prompt.empty())
    throw Error(ErrorKind::kInvalidArgument,
                "the prompt has no tokens; give at least one character");
  if (prompt_tokens >= context)
    throw Error(
        ErrorKind::kInvalidArgument,
        "the prompt has {} tokens, but the context is {}, answer included; shorten the prompt",
        prompt_tokens, context);
  if (options.max_tokens < 1)
    throw Error(ErrorKind::kInvalidArgument,
                "max_tokens is {}; at least one token must be asked for", options.max_tokens);
  const int64_t max_tokens = std::min(options.max_tokens, context - prompt_tokens);
  Sampler sampler(options.sampling, executor_.config().vocab_size);
  StopMatcher matcher(options.stop, options.stop_text);
  StreamDecoder decoder(tokenizer_, options.skip_special_tokens);
  const auto contains = [](const std::vector<int32_t>& ids, int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };

  Generation result;
  result.prompt_tokens = prompt_tokens;
  auto start = Clock::now();
  prepare_cache(prompt, prompt_tokens + max_tokens);
  result.reused_tokens = static_cast<int64_t>(cached_.size());
  bool going = prefill(prompt, callbacks);
  const auto emit = [&](std::string piece) {
    if (piece.empty()) return;
    result.text += piece;
    if (callbacks.on_text) callbacks.on_text(piece);
  };
  while (true) {
    if (!going) {
      result.finish_reason = FinishReason::kCancelled;
      break;
    }
    const SampledToken sampled = choose(sampler, prompt, result.token_ids, callbacks);
    const int32_t id = sampled.token;
    result.token_ids.push_back(id);
    if (callbacks.on_token) callbacks.on_token(sampled);
    if (result.token_ids.size() == 1) {
      result.prefill_s = seconds_since(start);
      start = Clock::now();
    }
    if (contains(options.stop_token_ids, id) || (!options.ignore_eos && contains(stop_ids_, id))) {
      result.finish_reason = FinishReason::kStop;
      break;
    }
    emit(matcher.push(decoder.push(id)));
    if (matcher.stopped()) {
      result.finish_reason = FinishReason::kStop;
      break;
    }
    if (static_cast<int64_t>(result.token_ids.size()) == max_tokens) break;
    check_interrupt();
    going = !(callbacks.cancelled && callbacks.cancelled());
    if (going) step({&id, 1});
  }
  result.decode_s = seconds_since(start);
  if (!matcher.stopped()) {
    emit(matcher.push(decoder.flush()));
    if (matcher.stopped())
      result.finish_reason = FinishReason::kStop;
    else
      emit(matcher.finish());
  }
  if (matcher.stopped()) result.stop_text = matcher.stop_string();
  return result;
}

}  // namespace whit
