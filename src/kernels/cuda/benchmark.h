// Times the CUDA backend's linears, each alone in a CUDA graph over rotating copies of its weight,
// larger together than any L2, so that weights come from device memory; beside them what the device
// itself can do, in the same run. Names no type of CUDA's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/cuda/linear.h"

namespace whit::cuda {

// Random weights of this kind are made; codes, zero points (all sixteen where there are any) and
// scales.
struct BenchmarkWeight {
  LinearFormat format = LinearFormat::kBf16;
  int64_t n = 0, k = 0;
  int64_t group_size = 128;
  bool zero_points = true;
};

struct BenchmarkLimits {
  std::string device;
  int sms = 0;
  double read_bytes_per_s = 0;  // 1.7 GB by plain 16-byte loads
  // The best of dense products of 8192 × 8192 × 8192 with int8 or e4m3 activations, and of bf16's.
  double int8_operations_per_s = 0, bf16_operations_per_s = 0;
};

struct BenchmarkResult {
  double us = 0;  // median of 25 graphs of at least a millisecond
  double weight_bytes_per_s = 0;
  double bare_read_us = 0;  // a kernel that only reads as many bytes
  double operations_per_s = 0;
};

class LinearBenchmark {
 public:
  // Throws as open_device where there is no GPU, kResource where its memory does not do.
  LinearBenchmark();
  ~LinearBenchmark();
  LinearBenchmark(const LinearBenchmark&) = delete;
  LinearBenchmark& operator=(const LinearBenchmark&) = delete;

  BenchmarkLimits limits(bool peaks);
  // `streaming`: by the kernel for few rows, whatever m is.
  BenchmarkResult run(const BenchmarkWeight& weight, int64_t m, bool streaming = false);
  // The weights in turn, as a model runs them, without what stands between: µs of all.
  double run_chain(std::span<const BenchmarkWeight> weights, int64_t m);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit::cuda
