// What a whit::LLMEngine holds: for the files that implement its members.
#pragma once

#include "api/loaded_model.h"
#include "api/requests.h"
#include "whit/llm_engine.h"

namespace whit {

struct LLMEngine::State {
  // Rows of one product with lm_head while a whole prompt's logits are computed: 16 rows of a
  // vocabulary of 128k are 8 MB, and the kernels' throughput no longer grows beyond.
  static constexpr int64_t kLogitRows = 16;

  State(const BuildConfig& config, std::filesystem::path path_to_run, Model model, cpu::Isa isa);

  std::filesystem::path path;
  ThreadPool pool;
  LoadedModel loaded;
  Requests requests;
};

}  // namespace whit
