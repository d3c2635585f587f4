// One answer being generated: from logits to tokens, text and the reason to stop.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/request.h"
#include "runtime/sampler.h"
#include "runtime/stop_matcher.h"
#include "tokenizer/tokenizer.h"

namespace whit {

class GrammarMatcher;

// What a thread needs while it samples.
struct ChoiceWorkspace {
  SamplerWorkspace sampler;
  std::vector<float> logits;
  // Index of the largest of x[0…n−1], the lowest where equal.
  int64_t (*argmax)(const float* x, int64_t n) = nullptr;
};

class Choice {
 public:
  // Throws kInvalidArgument for sampling options or stop texts out of range.
  Choice(const Request& request, int64_t index, const Tokenizer& tokenizer,
         std::span<const int32_t> model_stop_ids, int64_t vocab_size);
  ~Choice();

  // Chooses a token after each of `rows` rows of logits [rows, vocab_size], which follow the last
  // token and then the draft; ends where a token is not the draft's or ends the answer. The tokens
  // and what became of them are added to `event`. Independent of other choices: several threads may
  // each serve one.
  void sample(const float* logits, int64_t rows, std::span<const int32_t> draft,
              std::span<const uint64_t> allowed, ChoiceWorkspace& workspace, RequestEvent& event);

  // Whether every choice is that of the largest logit, and nothing else of the logits is asked for.
  bool takes_likeliest() const { return fast_; }
  // sample() with the likeliest token of each row, where takes_likeliest().
  void take_likeliest(std::span<const int32_t> tokens, std::span<const int32_t> draft,
                      RequestEvent& event);

  // Whether a row may be drawn from elsewhere: its token alone is asked for.
  bool may_draw_elsewhere() const;
  // What that takes, and the token that came of it. next_draw throws as sample() does.
  RowDraw next_draw(std::span<const uint64_t> allowed, ChoiceWorkspace& workspace) const;
  void take_drawn(int32_t token, RequestEvent& event);

  // Guesses of what follows: after the last place where the last tokens stood before (prompt
  // lookup: Saxena 2023), at most `count` tokens.
  std::vector<int32_t> look_up_draft(std::span<const int32_t> tokens, int64_t count) const;

  const std::vector<int32_t>& output() const { return output_; }
  bool finished() const { return finished_; }
  GrammarMatcher* grammar() { return grammar_.get(); }
  // Ends the answer: what is held back is shown.
  void finish(FinishReason reason, RequestEvent& event);

 private:
  void take(int32_t token, RequestEvent& event);
  // Which tokens may follow, ⌈V / 64⌉ words of bits: what the grammar allows of the tokens it
  // knows, and an end where its text may end. Throws kResource where nothing may.
  std::vector<uint64_t> allowed_tokens(std::span<const uint64_t> of_grammar) const;

  const Request& request_;
  const Tokenizer& tokenizer_;
  std::vector<int32_t> stop_ids_;
  int64_t vocab_size_;
  Sampler sampler_;
  StopMatcher matcher_;
  StreamDecoder decoder_;
  std::unique_ptr<GrammarMatcher> grammar_;
  std::vector<int32_t> output_;
  bool fast_;  // the largest logit as it comes
  bool finished_ = false;
};

}  // namespace whit
