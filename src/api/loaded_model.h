// A model that is ready to compute: opened, lowered for this CPU, packed.
#pragma once

#include <chrono>
#include <future>
#include <memory>

#include "engine/executor.h"
#include "engine/model.h"

namespace whit {

// kSoon: the tokenizer is made beside the packing of weights, not when it is first asked for.
enum class TokenizerUse : uint8_t { kMaybe, kSoon };

struct LoadedModel {
  // `options.max_context` 0 is the model's longest; a larger one is an error (kInvalidArgument). An
  // engine's weights are verified while they are packed.
  LoadedModel(const std::filesystem::path& path, const ExecutorOptions& options, ThreadPool& pool,
              TokenizerUse tokenizer = TokenizerUse::kMaybe)
      : LoadedModel(std::chrono::steady_clock::now(), Model::open(path, Verification::kLater),
                    options, pool, tokenizer) {}
  LoadedModel(std::chrono::steady_clock::time_point start, Model model,
              const ExecutorOptions& options, ThreadPool& pool,
              TokenizerUse tokenizer = TokenizerUse::kMaybe);

  // As Model::kv_format, but that "auto" with 16 bits is bf16 for quantized weights on a CPU with
  // AMX, whose tiles multiply it.
  KvFormat kv_format(std::string_view dtype) const;

  std::chrono::steady_clock::time_point start;  // of loading
  Model model;
  std::unique_ptr<Executor> executor;
  double load_s = 0;
  std::future<void>
      tokenizer_made;  // of kSoon; what it fails with, Model::tokenizer() throws again
};

// The ISA that a user named ("" or "auto": the best that this CPU has). Throws kInvalidArgument for
// an unknown name and kUnsupported for one that this CPU lacks.
cpu::Isa resolve_isa(std::string_view name);

}  // namespace whit
