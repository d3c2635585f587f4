// whit compare with several --calib or --text: what the calibration data changes.
#pragma once

#include <string>
#include <vector>

#include "cli/common.h"

namespace whit::cli {

struct StudyRequest {
  std::string model;
  std::vector<Recipe> recipes;     // outputs without the set's number
  CalibrationRequest calibration;  // its sources, one set a line
  std::vector<std::string> texts;
  int64_t ctx_size = 512, max_windows = 4;
  std::vector<std::string> reports;
  bool json = false;
};

int compare_calibration(const StudyRequest& request, Machine& machine);

}  // namespace whit::cli
