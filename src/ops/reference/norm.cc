#include "ops/reference/norm.h"

#include <cmath>
#include <vector>

#include "ops/reference/quantize.h"

namespace whit::reference {

void rms_norm(const RmsNormArgs& args) {
  std::vector<float> y(args.d);
  for (int64_t row = 0; row < args.m; ++row) {
    const float* x = args.x + row * args.x_stride;
    double squares = 0;
    for (int64_t i = 0; i < args.d; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(args.d) + args.eps);
    for (int64_t i = 0; i < args.d; ++i) y[i] = static_cast<float>(x[i] * inverse * args.weight[i]);
    if (args.y != nullptr) std::copy(y.begin(), y.end(), args.y + row * args.y_stride);
    if (args.q.q != nullptr) quantize_row(y.data(), args.d, args.q, row);
  }
}

}  // namespace whit::reference
