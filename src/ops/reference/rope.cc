#include "ops/reference/rope.h"

namespace whit::reference {

void rope(const RopeArgs& args) {
  const int64_t half = args.rotary_dims / 2;
  for (int64_t t = 0; t < args.t; ++t) {
    const float* cos = args.cos + args.positions[t] * half;
    const float* sin = args.sin + args.positions[t] * half;
    for (int64_t head = 0; head < args.heads; ++head) {
      float* x = args.x + t * args.x_stride + head * args.head_dim;
      for (int64_t i = 0; i < half; ++i) {
        const double a = x[i], b = x[i + half];
        x[i] = static_cast<float>(a * cos[i] - b * sin[i]);
        x[i + half] = static_cast<float>(b * cos[i] + a * sin[i]);
      }
    }
  }
}

}  // namespace whit::reference
