// From a floating-point model to engine directories: any number of recipes from one calibration,
// those that are decided layer by layer in one pass over the layers, mode "auto" in one of its own.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "calibrate/calibrator.h"
#include "calibrate/statistics_file.h"
#include "engine/model.h"
#include "quantize/algorithm.h"
#include "quantize/mixed_precision.h"
#include "quantize/salient.h"

namespace whit {

struct Recipe {
  std::string mode = "awq";     // a row of quantize/algorithm.h's table
  QuantScheme scheme;           // preset(…); a static_activations scheme is allowed with w8a8
  std::string head = "int8";    // embedding table and lm_head: "int8" per row, or "bf16"
  std::optional<double> alpha;  // SmoothQuant: this migration strength instead of a search
  // A scheme for each scaling group, within this target, in place of `scheme`, which says what
  // activations are. Mode "auto" only.
  std::optional<MixedRequest> mixed;
  SalientRequest salient;  // channels that keep a bf16 weight; mode "auto" only
  std::filesystem::path output;
};

struct QuantizeOptions {
  cpu::Isa isa = cpu::Isa::kPortable;
  // Of calibration and searches, where modes allow it: all but "auto". Null: the CPU.
  Accelerator* accelerator = nullptr;
  // Later layers are calibrated on what the quantized layers before them put out; only with a
  // single recipe.
  bool propagate = false;
  // In place of data, for modes that only read statistics (statistics_suffice); not with propagate.
  const StatisticsFile* statistics = nullptr;
  // A single recipe: keep what is done beside the output (or, if set, beside checkpoint_name), so
  // that the same call after an interruption goes on from there (quantize/resume.h).
  enum class Checkpoints { kNone, kPaced, kEveryLayer };
  Checkpoints checkpoints = Checkpoints::kNone;
  std::filesystem::path checkpoint_name;  // the caller removes it: remove_checkpoints()
  // What the engine says it was made from; empty: the source's own description.
  std::string source;
  // Where a passing copy of `original` is quantized: the run is known by the original's files, and
  // the next process of it removes `passing`, the copy's directory beside the output, should this
  // one be killed.
  const Model* original = nullptr;
  std::filesystem::path passing;
  // Told what a user should know before a long part begins. May be empty.
  std::function<void(const std::string&)> notice;
};

// Of one recipe.
struct QuantizeSummary {
  std::filesystem::path output;
  std::vector<GroupReport> reports;
  std::vector<std::string> warnings;
  Json mixed = Json::object();  // of mixed precision: target, chosen plan, Pareto front, groups
  Json rotation;                // of --rotate=auto: what was compared; null otherwise
  int64_t engine_bytes = 0;
  double bits_per_weight = 0;
  int resumed_layers = 0;         // that an interrupted run had finished
  Json quality;                   // measured figures; null where none were
  std::string device;             // that calibrated and searched; empty: the CPU
  int64_t peak_device_bytes = 0;  // most of its memory that was in use
  std::vector<Json> profiles;     // of its groups: quantize/profile.h
};

// Throws where the recipe cannot be applied to the model, or its output is taken by something that
// is no engine: before minutes are spent on calibration data.
void check_recipe(const Recipe& recipe, const Model& source);

// Throws kUnsupported for a mode that runs on the CPU alone.
void check_accelerated(const Recipe& recipe);

// Whether a mode needs no more of calibration data than the statistics of `whit calibrate`: all but
// "auto", which runs the data through the quantized model too.
bool statistics_suffice(const std::string& mode);

// Checks every recipe against the model (throws before any work), then calibrates, quantizes and
// writes all engines. With nothing finished or interrupted nothing is left behind but, where
// options.checkpoints says so, a checkpoint. `data` may be
// null where no recipe needs calibration.
std::vector<QuantizeSummary> quantize_model(const Model& source, std::span<const Recipe> recipes,
                                            const CalibrationData* data,
                                            const QuantizeOptions& options, ThreadPool& pool);

}  // namespace whit
