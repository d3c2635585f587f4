// Times a model's kernels on the GPU one by one, beside what the device can do in the same run.
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

// Of a kernel that is no linear.
struct CudaKernelTiming {
  std::string kernel;               // "attention decode", "rms_norm", …
  std::string format;               // of keys and values, or of the rows it makes
  int64_t m = 0;                    // rows, or sequences of attention
  int64_t context = 0, tokens = 0;  // of attention: of each sequence, and those computed
  double us = 0, bytes_per_s = 0, operations_per_s = 0;
  // Of the read bandwidth; of the dense bf16 peak, where it multiplies matrices.
  double percent_of_bandwidth = 0, percent_of_peak = 0;
};

struct CudaKernelTimings {
  std::string device;
  int sms = 0;
  double read_bytes_per_s = 0, int8_operations_per_s = 0, bf16_operations_per_s = 0;
  std::vector<CudaLinearTiming> linears;
  std::vector<CudaKernelTiming> others;
};

// Those of one shape and format once, at every m, with random weights and activations. Attention:
// decoding of m sequences and, from 128 on, a prompt of m tokens. Throws kUnsupported where there
// is no GPU.
CudaKernelTimings time_cuda_kernels(const Model& model, std::span<const int64_t> ms);

}  // namespace whit
