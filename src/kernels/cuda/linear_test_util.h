// Random weights and their double-precision products, for tests and benchmarks of CUDA linears.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "quant/weight.h"

namespace whit::cuda {

// Random codes (all sixteen; −127…127; e4m3 up to 240), zero points where `zero_points`, and scales
// around 0.01.
inline QuantizedTensor random_weight(WeightFormat format, int64_t n, int64_t k, int64_t group_size,
                                     bool zero_points, uint32_t seed) {
  QuantizedTensor weight = make_quantized(format, n, k, group_size, !zero_points);
  std::mt19937 random(seed);
  auto* data = weight.data.data<uint8_t>();
  for (int64_t i = 0; i < weight.data.bytes(); ++i) {
    data[i] = static_cast<uint8_t>(random());
    if (format == WeightFormat::kInt8Channel && data[i] == 0x80) data[i] = 0;
    if (format == WeightFormat::kFp8Channel && (data[i] & 0x7f) > 0x77) data[i] ^= 0x08;
  }
  std::uniform_real_distribution<float> scale(0.004f, 0.016f);
  if (format != WeightFormat::kInt4Group) {
    for (float& value : weight.scales.f32()) value = scale(random);
  } else {
    auto* scales = weight.scales.data<uint16_t>();
    for (int64_t i = 0; i < weight.scales.size(); ++i) scales[i] = f32_to_f16(scale(random));
  }
  if (zero_points) {
    auto* zeros = weight.zeros.data<uint8_t>();
    for (int64_t i = 0; i < weight.zeros.bytes(); ++i) zeros[i] = static_cast<uint8_t>(random());
  }
  return weight;
}

// Its scales made two-level ones: a step a row, multiples that its zero points allow.
inline void make_two_level(QuantizedTensor& weight, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0.0005f, 0.002f);
  const WeightView view = weight.view();
  auto* scales = weight.scales.data<uint16_t>();
  for (int64_t row = 0; row < view.n; ++row) {
    const float step = two_level_step_near(uniform(random));
    for (int64_t g = 0; g < view.groups(); ++g) {
      const int zero =
          view.zeros == nullptr
              ? 8
              : (view.zeros[row * view.zero_row_bytes() + g / 2] >> (4 * (g % 2))) & 15;
      const int most = most_multiple(static_cast<float>(zero));
      scales[row * view.groups() + g] =
          f32_to_f16(step * static_cast<float>(1 + static_cast<int>(random() % 15) % most));
    }
  }
  weight.two_level = true;
}

}  // namespace whit::cuda
