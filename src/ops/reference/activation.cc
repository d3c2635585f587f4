#include "ops/reference/activation.h"

#include <cmath>
#include <vector>

#include "ops/reference/quantize.h"

namespace whit::reference {

void silu_mul(const SiluMulArgs& args) {
  std::vector<float> y(args.f);
  for (int64_t row = 0; row < args.m; ++row) {
    const float* gate = args.gate + row * args.gate_stride;
    const float* up = args.up + row * args.up_stride;
    for (int64_t i = 0; i < args.f; ++i) {
      const double g = gate[i];
      y[i] = static_cast<float>(g / (1.0 + std::exp(-g)) * up[i]);
    }
    if (args.y != nullptr) std::copy(y.begin(), y.end(), args.y + row * args.y_stride);
    if (args.q.q != nullptr) quantize_row(y.data(), args.f, args.q, row);
  }
}

void add(const AddArgs& args) {
  for (int64_t i = 0; i < args.count; ++i) args.y[i] = args.x[i] + args.r[i];
}

}  // namespace whit::reference
