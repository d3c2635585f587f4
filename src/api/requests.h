// The requests of an LLMEngine: public parameters in, an EngineLoop behind, public updates out.
//
// The loop, with its cache and its thread, is made by the first request: an engine that only shows
// its logits or weights needs none.
#pragma once

#include <memory>
#include <mutex>

#include "api/loaded_model.h"
#include "runtime/engine_loop.h"
#include "whit/types.h"

namespace whit {

class Requests {
 public:
  using OnUpdate = std::function<void(RequestUpdate)>;

  // The model must outlive this.
  Requests(const LoadedModel& loaded, const BuildConfig& config);

  // As LLMEngine's.
  RequestId submit(std::vector<int32_t> prompt, const SamplingParams& params, OnUpdate on_update);
  void cancel(RequestId id);
  // Submits all and waits for their ends; the callbacks are called by this thread. Throws what the
  // first of them fails with, kInterrupted after Ctrl-C; the others are cancelled then.
  std::vector<RequestOutput> answer(std::vector<std::vector<int32_t>> prompts,
                                    const SamplingParams& params, const StreamCallbacks& callbacks);

  // What BuildConfig::kv_cache_dtype means for this model.
  const KvFormat& kv_format() const { return options_.kv_dtype; }

  // Runs `work` in the calling thread while no step and no other such work runs.
  void exclusively(const std::function<void()>& work);

 private:
  EngineLoop& loop();

  const LoadedModel& loaded_;
  const EngineLoopOptions options_;
  std::mutex mutex_;  // of making the loop, and of work before there is one
  std::unique_ptr<EngineLoop> loop_;
};

}  // namespace whit
