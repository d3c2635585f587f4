// Times a model's linears on the GPU one by one, beside what the device can do in the same run.
#pragma once

#include <string>
#include <vector>

#include "engine/model.h"

namespace whit {

struct CudaLinearTiming {
  std::string linears;  // that are one product: "q_proj + k_proj + v_proj"
  std::string format;
  int64_t group_size = 0;
  bool zero_points = false;
  int64_t n = 0, k = 0, m = 0;
  double us = 0, weight_bytes_per_s = 0, bare_read_us = 0, operations_per_s = 0;
  // Of the read bandwidth, of a kernel that only reads as many bytes, of the dense peak.
  double percent_of_bandwidth = 0, percent_of_bare_read = 0, percent_of_peak = 0;
};

struct CudaLinearTimings {
  std::string device;
  int sms = 0;
  double read_bytes_per_s = 0, int8_operations_per_s = 0, bf16_operations_per_s = 0;
  std::vector<CudaLinearTiming> rows;
};

// Those of one shape and format once, at every m, with random weights. Throws kUnsupported where
// there is no GPU.
CudaLinearTimings time_cuda_linears(const Model& model, std::span<const int64_t> ms);

}  // namespace whit
