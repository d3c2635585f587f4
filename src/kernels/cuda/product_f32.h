// Dense f32 products by cuBLASLt, for statistics and searches: f32 operands and sums, no tensor
// cores. The same arguments on the same GPU give the same bits.
//
// This header names no type of CUDA's.
#pragma once

#include <cstdint>
#include <memory>

struct CUstream_st;

namespace whit::cuda {

// y[m, n] = alpha · x[m, k] · w[n, k]ᵀ + beta · y, row-major; strides count elements between rows.
// Device pointers.
struct ProductArgs {
  int64_t m = 0, n = 0, k = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  bool x_by_columns = false;  // x lies as [k, m]
  const float* w = nullptr;
  int64_t w_stride = 0;
  bool w_by_columns = false;  // w lies as [k, n]
  float* y = nullptr;
  int64_t y_stride = 0;
  float alpha = 1, beta = 0;
  // So many products of one shape, operands at these distances.
  int64_t batch = 1, x_step = 0, w_step = 0, y_step = 0;
};

class ProductF32 {
 public:
  // Throws kUnsupported where there is no cuBLASLt, kResource when it cannot start.
  ProductF32();
  ~ProductF32();
  void run(const ProductArgs& args, CUstream_st* stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace whit::cuda
