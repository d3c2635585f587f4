// How calibration data changes what quantization makes of a model: the same recipes calibrated on
// several sets, each judged on several texts, in-domain and out.
//
// A set fits a text as far as it shows the model's channels at the magnitudes that the text has:
//   distance  mean over channels of |log2(mean|x| on the set ÷ mean|x| on the text)|, mean over the
//             inputs of linears; beside it the same between two halves of the text, which is what a
//             perfect set of the text's size would still have
//   coverage  share of the text's tokens that occur in the set
#pragma once

#include <string>
#include <vector>

#include "calibrate/calibrator.h"
#include "quantize/quantize.h"

namespace whit {

struct StudyText {
  std::string name;
  std::vector<int32_t> ids;
};
// "prose", "code", "chat", "german" (built in), "random" (tokens drawn evenly), or a file.
StudyText study_text(const Model& model, const std::string& name);
std::vector<std::string> built_in_texts();

struct StudySet {
  std::string name;
  CalibrationData data;
};

struct StudyOptions {
  cpu::Isa isa = cpu::Isa::kPortable;
  int64_t ctx_size = 512;
  int64_t max_windows = 4;  // of each text
};

// Quantizes by every recipe on every set (output of recipe r on set s: its own output with
// "@<s + 1>" behind) and evaluates all on all texts. The "study" of a report (report/report.h):
//   texts  [name]
//   sets   [{name, digest, tokens, warnings, fit: [{text, distance, floor, coverage}]}]
//   rows   [{recipe, set, engine, bits_per_weight, cells: [evaluate()'s figures by text]}]
//   changes [{recipe, sets: [a, b], groups, exponents_differ, largest_exponent_change,
//            median_threshold_ratio, largest_threshold_ratio}]
//   notes  [what a user should know: sets that do not represent a text, …]
Json calibration_study(const Model& model, const std::vector<StudySet>& sets,
                       const std::vector<Recipe>& recipes, const std::vector<StudyText>& texts,
                       const StudyOptions& options, ThreadPool& pool);

}  // namespace whit
