// Options that limit what quantization may cost.
#pragma once

#include <CLI/CLI.hpp>

#include "api/quality_gate.h"

namespace whit::cli {

// --max-ppl-increase, --max-kld.
void add_limits(CLI::App& app, QualityLimits& limits);
// … with --evaluate, --eval-text, --eval-windows: of a quantization.
void add_quality(CLI::App& app, QualityRequest& request);

}  // namespace whit::cli
