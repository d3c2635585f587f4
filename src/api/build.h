// From a model and settings to an engine directory: at a place of the user's, or in the cache.
#pragma once

#include <filesystem>

#include "api/calibration.h"
#include "api/quality_gate.h"
#include "engine/runner.h"
#include "quantize/quantize.h"

namespace whit {

struct BuildPlan {
  std::filesystem::path model_path;  // names a cached engine
  Recipe recipe;                     // an empty output means the cache
  CalibrationRequest calibration;
  std::filesystem::path statistics;  // not empty: of whit calibrate, in place of `calibration`
  bool propagate = false;
  QualityRequest quality;
  Backend backend = Backend::kCpu;  // of calibration and searches
  bool resumable = false;  // an interrupted build is gone on with by the next of the same plan
  // Whether the model is quantized in a rotated basis (quantize/rotate.h); kByLoss: where a trial
  // says so (quantize/rotation_trial.h).
  enum class Rotate { kNo, kYes, kByLoss };
  Rotate rotate = Rotate::kNo;
};

// Where an engine of this model and plan is cached:
// ${XDG_CACHE_HOME:-~/.cache}/whit/engines/<name>-<mode>-<scheme>-<digest of model, plan and
// program version>. Throws kInvalidArgument where neither variable names a directory.
std::filesystem::path cached_engine_path(const Model& model, const BuildPlan& plan);

// The engine at `path` if it is whole and of the settings of `recipe`.
enum class EngineState { kMissing, kDamaged, kValid };
EngineState engine_state(const std::filesystem::path& path, const Recipe& recipe);

// Makes the calibration data if the recipe needs it, then quantizes and writes.
// `notice`: QuantizeOptions'.
QuantizeSummary build(const Model& model, const BuildPlan& plan, cpu::Isa isa, ThreadPool& pool,
                      std::function<void(const std::string&)> notice = {});

// Throws kUnsupported where the plan's rotation lacks what it needs: data of the model's own.
void check_rotation(const BuildPlan& plan);

// Whether a recipe reads calibration data.
bool needs_calibration(const Recipe& recipe);

}  // namespace whit
