// Calibration data as a user names it: a file, or text that the model writes itself.
#pragma once

#include <string>

#include "calibrate/calibrator.h"
#include "engine/model.h"

namespace whit {

struct CalibrationRequest {
  std::string source = "self";  // or files, or a mixture: see api/calibration_source.h
  int64_t samples = 128;
  int64_t length = 512;
  uint64_t seed = 0;
};

// Throws kInvalidArgument for sizes out of range, and for a source that is missing, empty or too
// short for one sample. A mixture's part has samples in proportion to its weight; one with fewer
// tokens gives what it has, and a warning. "self": the model answers the built-in prompts (through
// its chat template where it has one) at temperature 1.
CalibrationData calibration_data(const Model& model, const CalibrationRequest& request,
                                 cpu::Isa isa, ThreadPool& pool);

// What tells one request's data from another's without making it: for a file, the digest of its
// content.
std::string calibration_key(const CalibrationRequest& request);

}  // namespace whit
