#include "ops/reference/quantize.h"

#include <bit>
#include <cfloat>
#include <cmath>

#include "tensor/e4m3.h"

namespace whit::reference {

namespace {

float largest_magnitude(const float* x, int64_t k) {
  uint32_t largest = 0;  // bits of |x| order like |x|, with NaN above infinity
  for (int64_t i = 0; i < k; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return std::bit_cast<float>(largest);
}

float inverse_of_scale(float scale) {
  return scale >= FLT_MIN && scale <= FLT_MAX ? 1.0f / scale : 0.0f;
}

}  // namespace

void quantize_row(const float* x, int64_t k, const Int8Rows& q, int64_t row) {
  float scale = q.static_scale > 0 ? q.static_scale : largest_magnitude(x, k) / 127.0f;
  const float inverse = inverse_of_scale(scale);
  if (scale < FLT_MIN) scale = 0.0f;

  int8_t* codes = q.q + row * q.stride;
  for (int64_t i = 0; i < k; ++i) {
    const float code = std::nearbyintf(x[i] * inverse);
    codes[i] = static_cast<int8_t>(code >= 127.0f   ? 127
                                   : code > -127.0f ? static_cast<int>(code)
                                                    : -127);
  }
  for (int64_t i = k; i < q.stride; ++i) codes[i] = 0;
  if (q.scale != nullptr) q.scale[row] = scale;
  if (q.group_sums == nullptr) return;
  const int64_t groups = ceil_div(k, q.group_size);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = (g + 1) * q.group_size < k ? (g + 1) * q.group_size : k;
    int32_t sum = 0;
    for (int64_t i = g * q.group_size; i < end; ++i) sum += codes[i];
    q.group_sums[row * groups + g] = sum;
  }
}

void round_row_to_fp8(const float* x, int64_t k, float static_scale, float* y) {
  float scale = static_scale > 0 ? static_scale : largest_magnitude(x, k) / kE4m3Largest;
  const float inverse = inverse_of_scale(scale);
  if (scale < FLT_MIN) scale = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    const float code = x[i] * inverse;  // where it is NaN: −448
    y[i] = (code > -kE4m3Largest ? round_to_e4m3(code) : -kE4m3Largest) * scale;
  }
}

void quantize(const QuantizeArgs& args) {
  for (int64_t row = 0; row < args.m; ++row)
    quantize_row(args.x + row * args.x_stride, args.k, args.q, row);
}

}  // namespace whit::reference
