// A step of the streaming kernel of linear_skinny_sm90.cuh: 16 or 32 weight rows × a tile of K by
// up to 16 tokens, from shared memory through mma.sync to sums in registers.
#pragma once

#include <type_traits>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_unpack.cuh"
#include "kernels/cuda/ptx.cuh"

namespace whit::cuda {

template <LinearFormat format>
struct StreamTraits {
  static constexpr bool kTwoLevel = format == LinearFormat::kW4A8TwoLevel;
  static constexpr bool kInt4 = format != LinearFormat::kW8A8;
  static constexpr bool kInteger = format != LinearFormat::kW4A16;
  static constexpr bool kExact = has_exact_sums(format);
  static constexpr int kTileK = kInt4 ? 128 : 64;
  static constexpr int kInputBytes = kInteger ? 1 : 2;
  // 8-byte pieces of a lane's inputs of one tile and token, 32 bytes apart.
  static constexpr int kRuns = kTileK * kInputBytes / 32;
  static constexpr int kScaleBytes = kInt4 ? 64 : 0;  // of a unit
};

// What a lane holds of a step: kUnits · 16 rows × kTileK of weights, and its tokens' inputs.
template <LinearFormat format, int kTokenTiles, int kUnits>
struct StreamStep {
  using T = StreamTraits<format>;
  // Rows r and r + 8 of a unit; words [upper][jj], of kW8A8 [jj][upper].
  uint4 half[kUnits][2];
  uint2 scales[kUnits];
  uint2 x[kTokenTiles][T::kRuns];

  __device__ __forceinline__ void load_inputs(const uint32_t (&rows)[kTokenTiles], int offset) {
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
      for (int run = 0; run < T::kRuns; ++run)
        x[nt][run] = load_shared_8(rows[nt] + offset + run * 32);
  }
  // codes: this lane's in the stage; scale_words: its row's.
  __device__ __forceinline__ void load_weights(uint32_t codes, uint32_t scale_words) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (T::kInt4) {
        half[u][0] = load_shared_16(codes + u * kUnitBytes);
        half[u][1] = load_shared_16(codes + u * kUnitBytes + 512);
        scales[u] = load_shared_8(scale_words + u * T::kScaleBytes);
      } else {
        load_core_matrices(codes + u * kUnitBytes, half[u]);
        scales[u] = make_uint2(0, 0);
      }
    }
  }
};

// Sums of 16 rows × 8 tokens a tile, as the tensor cores hold them. A step's products are begun by
// multiply() and added to the sums by finish(): in between, the next step can be loaded.
template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kUnits>
struct StreamSums {
  using T = StreamTraits<format>;
  using Product = std::conditional_t<T::kInteger, int, float>;
  float sums[kUnits][kTokenTiles][4];
  Product products[kUnits][kTokenTiles][4];  // where sums are exact, over all steps
  int x_sums[kTokenTiles][4];
  uint2 scales[kUnits];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[u][nt][c] = 0, products[u][nt][c] = 0;
  }
  __device__ __forceinline__ uint32_t bits(int u, int value) const {
    if constexpr (T::kExact)
      return static_cast<uint32_t>(products[u][value / 4][value % 4]);
    else
      return __float_as_uint(sums[u][value / 4][value % 4]);
  }

  __device__ __forceinline__ void multiply(const StreamStep<format, kTokenTiles, kUnits>& step) {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) scales[u] = step.scales[u];
    if constexpr (!T::kExact) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
          for (int c = 0; c < 4; ++c) products[u][nt][c] = 0;
    }
    if constexpr (format == LinearFormat::kW4A8 && kZeroPoints) {
      // Of each token's inputs, in the places of the products: the rows of the operand are ones.
      const uint32_t ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x_sums[nt][c] = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) mma_s8(x_sums[nt], ones, step.x[nt][i].x, step.x[nt][i].y);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if constexpr (format == LinearFormat::kW8A8) {
        const uint32_t low[4] = {step.half[u][0].x, step.half[u][0].y, step.half[u][0].z,
                                 step.half[u][0].w};
        const uint32_t high[4] = {step.half[u][1].x, step.half[u][1].y, step.half[u][1].z,
                                  step.half[u][1].w};
#pragma unroll
        for (int jj = 0; jj < 2; ++jj) {
          const uint32_t a[4] = {low[2 * jj], high[2 * jj], low[2 * jj + 1], high[2 * jj + 1]};
#pragma unroll
          for (int nt = 0; nt < kTokenTiles; ++nt)
            mma_s8(products[u][nt], a, step.x[nt][jj].x, step.x[nt][jj].y);
        }
      } else if constexpr (format == LinearFormat::kW4A16) {
        const uint32_t zeros[2] = {minus_zero_of(scales[u].x), minus_zero_of(scales[u].y)};
#pragma unroll
        for (int run = 0; run < 8; ++run) {
          uint32_t a[4];
          unpack_operand(a, step.half[u], run % 2, [&](uint32_t word, int row) {
            return bf16_of_nibbles(word, run / 2, zeros[row]);
          });
#pragma unroll
          for (int nt = 0; nt < kTokenTiles; ++nt)
            mma_bf16(products[u][nt], a, step.x[nt][run].x, step.x[nt][run].y);
        }
      } else {
        [[maybe_unused]] const TwoLevelCodes codes(scales[u]);
#pragma unroll
        for (int run = 0; run < 4; ++run) {
          const int i = run / 2;
          uint32_t a[4];
          unpack_operand(a, step.half[u], run % 2, [&](uint32_t word, int row) {
            if constexpr (T::kTwoLevel)
              return codes.of(word, i, row);
            else if constexpr (kZeroPoints)
              return (i == 0 ? word : word >> 4) & 0x0f0f0f0fu;
            else
              return int8_of_nibbles<false>(word, i, 0);
          });
#pragma unroll
          for (int nt = 0; nt < kTokenTiles; ++nt)
            mma_s8(products[u][nt], a, step.x[nt][run].x, step.x[nt][run].y);
        }
      }
    }
  }
  __device__ __forceinline__ void finish() {
    if constexpr (!T::kExact) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        constexpr float kUnit = format == LinearFormat::kW4A8 ? kInt4Unit<kZeroPoints> : 1.0f;
        const float scale[2] = {scale_of(scales[u].x) * kUnit, scale_of(scales[u].y) * kUnit};
        const int zero[2] = {static_cast<int>(scales[u].x >> 16),
                             static_cast<int>(scales[u].y >> 16)};
#pragma unroll
        for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            Product product = products[u][nt][c];
            // Σ (code − zero)·x, exactly.
            if constexpr (format == LinearFormat::kW4A8 && kZeroPoints)
              product -= zero[c / 2] * x_sums[nt][c % 2];
            sums[u][nt][c] = __fmaf_rn(scale[c / 2], static_cast<float>(product), sums[u][nt][c]);
          }
      }
    }
  }
};

}  // namespace whit::cuda
