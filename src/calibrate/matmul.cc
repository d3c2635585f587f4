#include "calibrate/matmul.h"

namespace whit {

cpu::PackedWeight Matmul::pack(const float* w, int64_t n, int64_t k) {
  const WeightView view{.format = WeightFormat::kF32, .n = n, .k = k, .data = w};
  return cpu::pack_linear(kernel_, {&view, 1}, pool_);
}

void Matmul::multiply(const float* x, int64_t x_stride, int64_t m, const cpu::PackedWeight& w,
                      float* y, int64_t y_stride, Output output) {
  const int64_t scratch = kernel_.scratch_bytes(w, m) * pool_.size();
  if (scratch > scratch_.bytes()) scratch_ = Buffer(scratch);
  const cpu::LinearArgs args{.weight = &w,
                             .m = m,
                             .x = x,
                             .x_stride = x_stride,
                             .q = {},
                             .bias = nullptr,
                             .residual = output == Output::kAccumulate ? y : nullptr,
                             .residual_stride = y_stride,
                             .y = y,
                             .y_stride = y_stride,
                             .scratch = scratch_.as<std::byte>()};
  pool_.run([&](const Worker& worker) { kernel_.run(args, worker); });
}

}  // namespace whit
