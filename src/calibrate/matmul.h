// Dense f32 products on all threads of a pool, for statistics and searches: the linear kernels
// under another name.
#pragma once

#include "kernels/cpu/table.h"

namespace whit {

class Matmul {
 public:
  Matmul(ThreadPool& pool, cpu::Isa isa)
      : pool_(pool),
        kernel_(cpu::linear_kernel(WeightFormat::kF32, cpu::Activation::kFloat, isa)) {}

  // w [n, k] as the right-hand side of multiply.
  cpu::PackedWeight pack(const float* w, int64_t n, int64_t k);
  // y[m, n] = x[m, k] · wᵀ (+ y where `accumulate`)
  enum class Output { kReplace, kAccumulate };
  void multiply(const float* x, int64_t x_stride, int64_t m, const cpu::PackedWeight& w, float* y,
                int64_t y_stride, Output output = Output::kReplace);
  ThreadPool& pool() { return pool_; }

 private:
  ThreadPool& pool_;
  const cpu::LinearKernel& kernel_;
  Buffer scratch_;
};

}  // namespace whit
