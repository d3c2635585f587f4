// Building an engine directory without running it.
#pragma once

#include "whit/types.h"

namespace whit {

struct BuildReport {
  std::filesystem::path engine_dir;
  bool reused = false;  // a valid engine for the same model and settings was there already
  int64_t engine_bytes = 0;
  double bits_per_weight = 0;
  std::vector<std::string> warnings;
};

// Calibrates, quantizes and writes the engine directory: to `config.engine_dir`, or to the cache,
// where an engine built before for the same model and settings is kept. The directory appears whole
// or not at all.
BuildReport build_engine(const std::filesystem::path& model_dir, QuantMode mode,
                         const QuantPolicy& policy = {}, const BuildConfig& config = {});

}  // namespace whit
