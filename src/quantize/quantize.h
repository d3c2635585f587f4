// From a floating-point model to engine directories: any number of recipes from one calibration,
// those that are decided layer by layer in one pass over the layers, mode "auto" in one of its own.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "calibrate/calibrator.h"
#include "engine/model.h"
#include "quantize/algorithm.h"

namespace whit {

struct Recipe {
  std::string mode = "awq";     // a row of quantize/algorithm.h's table
  QuantScheme scheme;           // preset(…); a static_activations scheme is allowed with w8a8
  std::string head = "int8";    // embedding table and lm_head: "int8" per row, or "bf16"
  std::optional<double> alpha;  // SmoothQuant: this migration strength instead of a search
  std::filesystem::path output;
};

struct QuantizeOptions {
  cpu::Isa isa = cpu::Isa::kPortable;
  // Later layers are calibrated on what the quantized layers before them put out; only with a
  // single recipe.
  bool propagate = false;
};

// Of one recipe.
struct QuantizeSummary {
  std::filesystem::path output;
  std::vector<GroupReport> reports;
  std::vector<std::string> warnings;
  int64_t engine_bytes = 0;
  double bits_per_weight = 0;
};

// Throws where the recipe cannot be applied to the model, or its output is taken by something that
// is no engine: before minutes are spent on calibration data.
void check_recipe(const Recipe& recipe, const Model& source);

// Checks every recipe against the model (throws before any work), then calibrates, quantizes and
// writes all engines. With nothing finished or interrupted nothing is left behind. `data` may be
// null where no recipe needs calibration.
std::vector<QuantizeSummary> quantize_model(const Model& source, std::span<const Recipe> recipes,
                                            const CalibrationData* data,
                                            const QuantizeOptions& options, ThreadPool& pool);

}  // namespace whit
