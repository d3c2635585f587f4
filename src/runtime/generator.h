// One sequence from prompt ids to text: prefill in chunks, sample, decode, stop.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/executor.h"
#include "runtime/sampler.h"
#include "runtime/stop_matcher.h"
#include "tokenizer/tokenizer.h"

namespace whit {

struct GenerationOptions {
  SamplerOptions sampling;
  int64_t max_tokens = 128;       // lowered to what the context has room for
  std::vector<std::string> stop;  // texts that end the answer; they are not part of it
  StopText stop_text = StopText::kRemove;
  std::vector<int32_t> stop_token_ids;  // end the answer as the model's own do, ignore_eos or not
  bool ignore_eos = false;
  bool skip_special_tokens = true;  // in the text
};

enum class FinishReason { kStop, kLength, kCancelled };
std::string_view name(FinishReason reason);  // "stop", "length", "cancelled"

struct Generation {
  std::string text;                // without special tokens, stop texts and what follows them,
                                   // unless the options say otherwise
  std::vector<int32_t> token_ids;  // including the end-of-sequence token where there was one
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_text;                         // the stop text that ended the answer
  int64_t prompt_tokens = 0, reused_tokens = 0;  // reused: of the prompt, in the cache already
  double prefill_s = 0, decode_s = 0;            // the first token belongs to the prefill

  double prefill_tokens_per_s() const;
  double decode_tokens_per_s() const;
};

// Called with the logits [V] before every choice, with every token chosen, and with every piece of
// text that is certain; and after every step, whether to go on.
struct GenerationCallbacks {
  std::function<void(std::span<const float>)> on_logits;
  std::function<void(const SampledToken&)> on_token;
  std::function<void(std::string_view)> on_text;
  std::function<bool()> cancelled;
};

class Generator {
 public:
  // The executor and the tokenizer must outlive the generator. `stop_ids` end an answer.
  Generator(Executor& executor, const Tokenizer& tokenizer, std::vector<int32_t> stop_ids,
            KvFormat kv_dtype);

  // Keys and values stay cached: of a prompt that continues what was seen last, only the new part
  // is computed. Throws kInvalidArgument for an empty prompt or one that fills the context,
  // kInterrupted after Ctrl-C.
  Generation generate(std::span<const int32_t> prompt, const GenerationOptions& options,
                      const GenerationCallbacks& callbacks = {});

 private:
  void prepare_cache(std::span<const int32_t> prompt, int64_t capacity);
  // Runs tokens that follow the cached ones.
  void step(std::span<const int32_t> ids);
  // The token after the last that ran.
  SampledToken choose(Sampler& sampler, std::span<const int32_t> prompt,
                      std::span<const int32_t> output, const GenerationCallbacks& callbacks);
  // False where it was cancelled.
  bool prefill(std::span<const int32_t> prompt, const GenerationCallbacks& callbacks);

  Executor& executor_;
  const Tokenizer& tokenizer_;
  std::vector<int32_t> stop_ids_;
  KvFormat kv_dtype_;
  std::optional<KvCache> cache_;
  std::vector<float> logits_;  // [V], the sampler's to overwrite
  SamplerWorkspace workspace_;
  int32_t last_row_ = 0;
  std::vector<int32_t> cached_;  // ids whose keys and values are in cache_
};

}  // namespace whit
