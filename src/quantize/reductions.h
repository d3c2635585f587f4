// Sums and ranges over rows, in lanes that a compiler makes vectors of: in their plain order
// neither may be reassociated.
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

struct ValueRange {
  float low, high;
  float largest() const { return std::max(-low, high); }  // magnitude
};

// Of `count` ≥ 1 values, none of them NaN.
inline ValueRange value_range(const float* values, int64_t count) {
  constexpr int64_t kLanes = 16;
  float low[kLanes], high[kLanes];
  std::fill_n(low, kLanes, values[0]);
  std::fill_n(high, kLanes, values[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      low[lane] = std::min(low[lane], values[i + lane]);
      high[lane] = std::max(high[lane], values[i + lane]);
    }
  for (; i < count; ++i) {
    low[0] = std::min(low[0], values[i]);
    high[0] = std::max(high[0], values[i]);
  }
  return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes)};
}

}  // namespace whit
