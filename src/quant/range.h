// The range of a row's values, in lanes that a compiler makes vectors of.
#pragma once

#include <algorithm>
#include <cstdint>

namespace whit {

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
