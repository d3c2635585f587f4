// The sampling options that run and chat share.
#pragma once

#include <CLI/CLI.hpp>

#include "runtime/generator.h"

namespace whit::cli {

struct UserGenerationOptions {
  GenerationOptions generation;
  std::optional<uint64_t> seed;
  int64_t ctx_size = 0;
  std::string kv_cache_dtype = "auto";

  void add_to(CLI::App& app);
  // With a seed drawn where the user gave none.
  GenerationOptions resolved() const;
};

}  // namespace whit::cli
