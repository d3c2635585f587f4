// What an EngineLoop knows of the requests that it serves; for the files that implement it.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine_loop.h"

namespace whit {

struct EngineLoop::Answer {
  Active* active = nullptr;
  int64_t index = 0;
  std::unique_ptr<Choice> choice;  // none for an embedding
  Sequence* sequence = nullptr;
  bool begun = false, ended = false;
  RequestEvent event;
  // Inside a catch block: what ends the answer.
  void fail(const std::exception& what) {
    error = what.what();
    failure = std::current_exception();
  }
  std::string error;
  std::exception_ptr failure;
  std::vector<int32_t> sampled;      // of this step
  std::vector<TokenDetail> prompt;   // of the prompt's tokens but the first
  std::vector<float> prompt_logits;  // [prompt, V]
  std::vector<double> sum;           // of an embedding: normalized hidden states so far
};

struct EngineLoop::Active {
  RequestId id = 0;
  Request request;
  std::vector<std::unique_ptr<Answer>> answers;
  int64_t left = 0;  // answers that have not ended
  RequestTimes times;
};

}  // namespace whit
