// Pairs of int8 rows (avx512/activation_pairs.h) where AMX tiles read them: the high rows of 16
// activations, then their low rows, which make one block of tiles.
#pragma once

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/activation_pairs.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

// Rows of x a pass: both of each pair should stay in L2.
inline int64_t pair_pass_rows(int64_t k, int64_t m) {
  constexpr int64_t kPassBytes = 768 << 10, kMostRows = 512;
  const int64_t rows =
      std::clamp(kPassBytes / (2 * k) / kTileRows * kTileRows, kTileRows, kMostRows);
  return std::min(rows, round_up(m, kTileRows));
}

// Rows [begin, begin + rows) of x as pairs whose rows are `stride` bytes apart, zeros up to whole
// tiles, and their scales; returns the rows of x that make whole tiles.
inline int64_t quantize_pair_tiles(const LinearArgs& args, int64_t begin, int64_t rows,
                                   int64_t group_size, int64_t stride, int8_t* codes,
                                   float* scales) {
  const int64_t k = args.weight->k, padded = round_up(rows, kTileRows);
  for (int64_t m = 0; m < padded; ++m) {
    int8_t* high = codes + (m / kTileRows * kBlockRows + m % kTileRows) * stride;
    int8_t* low = high + kTileRows * stride;
    if (m < rows) {
      scales[m] = quantize_pair(args.x + (begin + m) * args.x_stride, k, group_size,
                                {high, nullptr}, {low, nullptr});
    } else {
      std::memset(high, 0, stride);
      std::memset(low, 0, stride);
    }
  }
  return padded;
}

}  // namespace
}  // namespace whit::cpu
