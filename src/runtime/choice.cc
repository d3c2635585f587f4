#include "runtime/choice.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/grammar/matcher.h"

namespace whit {
namespace {

// Where an answer repeats something, what follows the last three equal tokens is a good guess, and
// what follows two a fair one.
constexpr int64_t kLongestLookup = 3, kShortestLookup = 2;

SamplerOptions seeded(const Request& request, int64_t choice) {
  SamplerOptions options = request.options.sampling;
  options.seed += static_cast<uint64_t>(choice) * request.seed_stride;
  return options;
}

}  // namespace

Choice::Choice(const Request& request, int64_t index, const Tokenizer& tokenizer,
               std::span<const int32_t> model_stop_ids, int64_t vocab_size)
    : request_(request),
      tokenizer_(tokenizer),
      stop_ids_(request.stop_token_ids),
      vocab_size_(vocab_size),
      sampler_(seeded(request, index), vocab_size),
      matcher_(request.options.stop, request.keep_stop_text ? StopText::kKeep : StopText::kRemove),
      decoder_(tokenizer, request.skip_special_tokens) {
  if (!request.options.ignore_eos)
    stop_ids_.insert(stop_ids_.end(), model_stop_ids.begin(), model_stop_ids.end());
  if (request.grammar) grammar_ = std::make_unique<GrammarMatcher>(request.grammar);
  const SamplerOptions& sampling = sampler_.params();
  fast_ = sampling.plain_argmax() && !grammar_ && !request.logits && !request.prompt_logits;
}

Choice::~Choice() = default;

void Choice::take_likeliest(std::span<const int32_t> tokens, std::span<const int32_t> draft,
                            RequestEvent& event) {
  for (size_t row = 0; row < tokens.size() && !finished_; ++row) {
    take(tokens[row], event);
    if (row < draft.size() && draft[row] != tokens[row]) break;
  }
}

void Choice::sample(const float* logits, int64_t rows, std::span<const int32_t> draft,
                    std::span<const uint64_t> allowed, ChoiceWorkspace& workspace,
                    RequestEvent& event) {
  for (int64_t row = 0; row < rows && !finished_; ++row) {
    const float* row_logits = logits + row * vocab_size_;
    if (fast_) {
      const auto token = static_cast<int32_t>(workspace.argmax(row_logits, vocab_size_));
      // Damaged logits are the sampler's to refuse.
      if (std::isfinite(row_logits[token])) {
        take(token, event);
        if (row < std::ssize(draft) && draft[row] != token) break;
        continue;
      }
    }
    if (request_.logits)
      event.logits.insert(event.logits.end(), row_logits, row_logits + vocab_size_);
    // The sampler overwrites its logits.
    workspace.logits.assign(row_logits, row_logits + vocab_size_);
    if (grammar_) {
      const std::vector<uint64_t> may_follow = allowed_tokens(allowed);
      for (int64_t id = 0; id < vocab_size_; ++id)
        if ((may_follow[id / 64] >> (id % 64) & 1) == 0)
          workspace.logits[id] = -std::numeric_limits<float>::infinity();
    }
    const SampledToken sampled =
        sampler_.sample(workspace.logits, request_.prompt, output_, workspace.sampler);
    if (sampler_.params().logprobs >= 0)
      event.details.push_back(
          {sampled.token, sampled.logprob, {sampled.top.begin(), sampled.top.end()}});
    take(sampled.token, event);
    if (row < std::ssize(draft) && draft[row] != sampled.token) break;
  }
}

std::vector<uint64_t> Choice::allowed_tokens(std::span<const uint64_t> of_grammar) const {
  // Ending is allowed where the grammar's text is complete, whichever token the model ends with.
  const bool may_end = grammar_->may_end();
  if (!may_end &&
      std::all_of(of_grammar.begin(), of_grammar.end(), [](uint64_t bits) { return bits == 0; }))
    throw Error(ErrorKind::kResource,
                "the answer is nested deeper than its grammar can be followed");
  // A model's vocabulary may be padded beyond the tokenizer's, or cut off before its end.
  std::vector<uint64_t> allowed(ceil_div(vocab_size_, 64));
  std::copy_n(of_grammar.begin(), std::min(of_grammar.size(), allowed.size()), allowed.begin());
  for (const int32_t id : stop_ids_)
    if (may_end && id >= 0 && id < vocab_size_) allowed[id / 64] |= uint64_t{1} << (id % 64);
  return allowed;
}

bool Choice::may_draw_elsewhere() const {
  return sampler_.params().logprobs < 0 && !request_.logits && !request_.prompt_logits;
}

RowDraw Choice::next_draw(std::span<const uint64_t> allowed, ChoiceWorkspace& workspace) const {
  RowDraw draw = sampler_.next_draw(request_.prompt, output_, workspace.sampler);
  if (grammar_) draw.allowed = allowed_tokens(allowed);
  return draw;
}

void Choice::take_drawn(int32_t token, RequestEvent& event) {
  sampler_.drawn();
  take(token, event);
}

void Choice::take(int32_t token, RequestEvent& event) {
  output_.push_back(token);
  event.token_ids.push_back(token);
  if (std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end()) {
    event.stopped_by_token = true;
    return finish(FinishReason::kStop, event);
  }
  event.text += matcher_.push(decoder_.push(token));
  if (matcher_.stopped()) return finish(FinishReason::kStop, event);
  if (grammar_) {
    grammar_->accept(token);
    if (grammar_->must_end()) return finish(FinishReason::kStop, event);
  }
  if (static_cast<int64_t>(output_.size()) >= request_.options.max_tokens)
    finish(FinishReason::kLength, event);
}

void Choice::finish(FinishReason reason, RequestEvent& event) {
  finished_ = true;
  if (!matcher_.stopped()) event.text += matcher_.push(decoder_.flush());
  if (matcher_.stopped()) {
    event.stop_reason = matcher_.stop_string();
    if (reason == FinishReason::kLength) reason = FinishReason::kStop;
  } else {
    event.text += matcher_.finish();
  }
  event.finished = true;
  event.finish_reason = reason;
}

std::vector<int32_t> Choice::look_up_draft(std::span<const int32_t> tokens, int64_t count) const {
  const auto length = static_cast<int64_t>(tokens.size());
  for (int64_t n = kLongestLookup; n >= kShortestLookup; --n) {
    if (length <= n) continue;
    const auto last = tokens.last(n);
    for (int64_t at = length - n - 1; at >= 0; --at) {
      if (tokens[at] != last[0] || !std::ranges::equal(tokens.subspan(at, n), last)) continue;
      const auto follows = tokens.subspan(at + n);
      return {follows.begin(), follows.begin() + std::min<int64_t>(count, std::ssize(follows))};
    }
  }
  return {};
}

}  // namespace whit
