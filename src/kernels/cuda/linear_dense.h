// Dense products of bf16 and of e4m3 (per-row × per-channel scales) by cuBLASLt, which is opened
// when first needed, so that a program without it starts and says what is missing.
#pragma once

#include <memory>

#include "kernels/cuda/linear.h"

namespace whit::cuda {

// A packed kFp8 weight: rows of e4m3, each filled up with zeros to this many bytes, as cuBLASLt
// wants them, then f32 scales [N].
inline int64_t fp8_row_bytes(int64_t k) { return (k + 15) / 16 * 16; }

class DenseLinear {
 public:
  // Throws kUnsupported, saying where it was looked for, when there is no cuBLASLt of the toolkit's
  // major version, and kResource when it cannot start.
  DenseLinear();
  ~DenseLinear();

  // weight.format is kBf16 or kFp8. Same contract as LinearRunner::run. With a bias, bf16 results
  // are rounded once before and once after it is added.
  void run(const LinearArgs& args, CUstream_st* stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace whit::cuda
