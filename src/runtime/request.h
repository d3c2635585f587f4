// What a client asks of the engine, and what it is told.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/generator.h"
#include "runtime/scheduler.h"

namespace whit {

class Grammar;

using RequestId = uint64_t;

struct Request {
  std::vector<int32_t> prompt;
  GenerationOptions options;            // of each choice, but for its seed
  std::vector<int32_t> stop_token_ids;  // besides the model's own
  int64_t choices = 1;                  // answers to the same prompt
  int prompt_logprobs = -1;             // as SamplerOptions::logprobs, for the prompt's tokens
  bool prompt_logits = false;           // choice 0 brings those of every position of the prompt
  bool logits = false;                  // each choice brings what its tokens were chosen from
  // Choice i is sampled with the seed + i * seed_stride.
  uint64_t seed_stride = 0x9e3779b97f4a7c15u;
  bool skip_special_tokens = true;         // in the text
  bool keep_stop_text = false;             // the stop text is part of the answer
  std::shared_ptr<const Grammar> grammar;  // null: any text
  bool embedding = false;                  // no answer, but a vector for the prompt
  int64_t priority = 0;                    // smaller is sooner
  std::string tenant;                      // tenants share the engine fairly
  std::string cache_salt;                  // cached prefixes are shared among equal salts only
  std::shared_ptr<void> context;           // the client's; comes back with every event
};

struct TokenDetail {
  int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;  // most probable first
};

struct RequestTimes {
  using Clock = std::chrono::steady_clock;
  Clock::time_point submitted, scheduled, first_token, finished;
};

// One choice's progress in one step.
struct RequestEvent {
  RequestId id = 0;
  std::shared_ptr<void> context;
  int64_t choice = 0;
  std::string text;                  // certain by now
  std::vector<int32_t> token_ids;    // generated in this step
  std::vector<TokenDetail> details;  // of those, where log-probabilities were asked for
  bool first = false;                // the choice's first event; `times` is set up to here

  std::vector<float> logits;  // [token_ids, V], where asked for

  // With choice 0's first event: of the prompt's tokens but the first.
  std::vector<TokenDetail> prompt_details;
  std::vector<float> prompt_logits;  // [prompt, V], with choice 0's first event

  bool finished = false;  // the choice's last event; what follows is set
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_reason;        // the stop text that ended it; empty for other reasons
  bool stopped_by_token = false;  // the last token is one that ends answers, not part of the text
  std::string error;              // not empty: the choice failed
  std::exception_ptr failure;     // what it failed with
  bool last_choice = false;       // the request is done
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0, preemptions = 0;
  RequestTimes times;
  std::vector<float> embedding;  // unit length
};

}  // namespace whit
