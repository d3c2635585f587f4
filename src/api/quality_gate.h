// Limits on what quantization may cost: measured before an engine gets its name, recorded in it,
// and asked of it before it serves.
#pragma once

#include <optional>
#include <string>

#include "engine/model.h"

namespace whit {

// What may be lost. Unset: anything.
struct QualityLimits {
  std::optional<double> ppl_increase;  // (PPL ÷ the original's) − 1: .05 is 5 %
  std::optional<double> kld;           // mean KL divergence from the original, nats
  bool any() const { return ppl_increase || kld; }
};

struct QualityRequest {
  QualityLimits limits;
  bool measure = false;  // without limits, too
  std::string text;      // a file; empty: the built-in text (prose, code, dialogue)
  int64_t ctx_size = 512;
  int64_t max_windows = 16;  // 0: all
};

// Figures of `engine` against `original` on the held-out text, as engine.json records them:
// text, text_digest, ctx_size, tokens, ppl, reference_ppl, ppl_ratio, kld, kld_stderr,
// top1_agreement. They do not depend on the thread count.
Json measure_quality(const Model& engine, const Model& original, const QualityRequest& request,
                     cpu::Isa isa, ThreadPool& pool);

// Puts measured figures into an engine's manifest.
void record_quality(const std::filesystem::path& engine, const Json& quality);

// Throws kResource where recorded figures are beyond a limit, naming `what`, figure and limit, and
// kNotFound where there are limits and no figures (with the remedy).
void check_quality(const Json& quality, const QualityLimits& limits, const std::string& what);

// "0.05" or "5%" as .05. Throws kInvalidArgument for anything but a number from 0 on.
double parse_share(const std::string& text);

}  // namespace whit
