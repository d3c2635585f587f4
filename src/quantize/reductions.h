// Sums over rows, in lanes that a compiler makes vectors of: in their plain order they may not be
// reassociated.
#pragma once

#include <algorithm>
#include <cstdint>

namespace whit {

// Σ f(i), i < count: in f32 within blocks of 512 and f64 across them.
template <typename F>
double blocked_sum(int64_t count, F&& f) {
  constexpr int64_t kBlock = 512, kLanes = 16;
  double total = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t end = std::min(count, first + kBlock);
    float lanes[kLanes] = {};
    int64_t i = first;
    for (; i + kLanes <= end; i += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += f(i + lane);
    for (; i < end; ++i) lanes[0] += f(i);
    for (const float lane : lanes) total += lane;
  }
  return total;
}

// Σ a·b
inline double dot(const float* a, const float* b, int64_t count) {
  return blocked_sum(count, [=](int64_t i) { return a[i] * b[i]; });
}

// Σ w·a²
inline double weighted_squares(const float* a, const float* weights, int64_t count) {
  return blocked_sum(count, [=](int64_t i) { return weights[i] * a[i] * a[i]; });
}

}  // namespace whit
