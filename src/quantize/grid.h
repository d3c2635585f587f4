// The grid that the codes of a weight lie on: each group's scale and lowest code. Algorithms choose
// it, put codes on it and pack them as the weight that is stored.
#pragma once

#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "quant/scheme.h"
#include "quant/weight.h"
#include "tensor/e4m3.h"

namespace whit {

// Two-level steps that a search tries, as shares of the least one that holds all groups of a row.
inline constexpr float kTwoLevelShares[] = {1.0f, 0.87f, 0.75f};

// Codes are relative to their zero points: a value is code · scale.
struct Grid {
  enum class Codes { kNone, kRoom };  // memory for them
  Grid(const Tensor& w, const QuantArgs& args, Codes room = Codes::kRoom)
      : n(w.dim(0)),
        k(w.dim(1)),
        int4(args.num_bits == 4),
        e4m3(args.type == NumberType::kFloat),
        largest(args.largest_code()),
        symmetric(args.symmetric),
        two_level(args.two_level),
        group(int4 ? args.group_size : k),
        groups(ceil_div(k, group)),
        levels(int4 ? 15.0f : 254.0f),
        scale(n * groups),
        lowest(n * groups),
        step(two_level ? n : 0),
        codes(DType::kF32, {n, room == Codes::kRoom ? k : 0}) {}

  // The scale of group `at` as it is stored.
  float stored(float value, int64_t at) const {
    if (two_level) {
      const float row_step = step[at / groups];
      return std::clamp(std::nearbyintf(value / row_step), 1.0f,
                        static_cast<float>(most_multiple(-lowest[at]))) *
             row_step;
    }
    return int4 ? f16_to_f32(f32_to_f16(std::clamp(value, 0x1p-24f, 65504.0f)))
                : std::max(value, 1e-30f);
  }
  // The code nearest to a value in units of the scale.
  float nearest(float value, int64_t at) const {
    if (e4m3) return round_to_e4m3(value);
    const float low = lowest[at];
    return round_nearest(std::clamp(value, low, low + levels));
  }

  int64_t n, k;
  bool int4, e4m3;
  float largest;  // code of 8 bits
  bool symmetric, two_level;
  int64_t group, groups;
  float levels;                      // integers are lowest … lowest + levels
  std::vector<float> scale, lowest;  // [N, G]
  std::vector<float> step;           // [N] of two-level scales
  Tensor codes;                      // f32 [N, K]
};

// Of a row of two-level scales: the groups as plain rounding would have them, and the least step
// that holds them all.
struct TwoLevelRow {
  TwoLevelRow(const float* w, const Grid& grid);
  // The multiples that a group may have with a step, down to the smallest that a search tries.
  struct Multiples {
    int least, most;
  };
  Multiples multiples(int64_t group, float row_step) const;

  std::vector<ValueRange> ranges;
  std::vector<Int4Params> whole;
  float step;  // not yet one that two-level scales may have
};

// Ranges of the groups: plain rounding's, or, with `cost` [K], the share of it that makes
// Σ cost·(w − Q(w))² least.
void choose_ranges(const Tensor& w, std::span<const float> cost, ThreadPool& pool, Grid& grid);
// The nearest code of every weight.
void round_to_grid(const Tensor& w, ThreadPool& pool, Grid& grid);

QuantizedTensor pack(const Grid& grid, ThreadPool& pool);

}  // namespace whit
