#include "ops/reference/linear.h"

#include <cmath>
#include <vector>

namespace whit::reference {

void linear(const LinearArgs& args) {
  const WeightView& w = args.weight;
  std::vector<float> row(w.k);
  for (int64_t n = 0; n < w.n; ++n) {
    dequantize_rows(w, n, n + 1, row.data());
    for (int64_t m = 0; m < args.m; ++m) {
      double sum = 0, magnitude = 0;
      const auto add = [&](double term) {
        sum += term;
        magnitude += std::fabs(term);
      };
      if (args.x != nullptr) {
        for (int64_t k = 0; k < w.k; ++k) add(double{row[k]} * args.x[m * args.x_stride + k]);
      } else {
        const double scale = args.q.static_scale > 0 ? args.q.static_scale : args.q.scale[m];
        for (int64_t k = 0; k < w.k; ++k)
          add(double{row[k]} * args.q.q[m * args.q.stride + k] * scale);
      }
      if (args.bias != nullptr) add(args.bias[n]);
      if (args.residual != nullptr) add(args.residual[m * args.residual_stride + n]);
      args.y[m * w.n + n] = sum;
      if (args.magnitude != nullptr) args.magnitude[m * w.n + n] = magnitude;
    }
  }
}

}  // namespace whit::reference
