// A model that is ready to compute: opened, lowered for this CPU, packed.
#pragma once

#include <chrono>
#include <memory>

#include "engine/executor.h"
#include "engine/model.h"

namespace whit {

struct LoadedModel {
  // `options.max_context` 0 is the model's longest; a larger one is an error (kInvalidArgument).
  LoadedModel(const std::filesystem::path& path, const ExecutorOptions& options, ThreadPool& pool)
      : LoadedModel(std::chrono::steady_clock::now(), Model::open(path), options, pool) {}
  LoadedModel(std::chrono::steady_clock::time_point start, Model model,
              const ExecutorOptions& options, ThreadPool& pool);

  std::chrono::steady_clock::time_point start;  // of loading
  Model model;
  std::unique_ptr<Executor> executor;
  double load_s = 0;
};

// The ISA that a user named ("" or "auto": the best that this CPU has). Throws kInvalidArgument for
// an unknown name and kUnsupported for one that this CPU lacks.
cpu::Isa resolve_isa(std::string_view name);

}  // namespace whit
