// How a warpgroup of linear_wide.cuh stores rows of bf16 to which nothing is added but a bias.
#pragma once

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sm90/linear_wide_shape.cuh"

namespace whit::cuda {

// What a thread's two rows of a product, r and r + 8 of its warp's, are multiplied by (1 where
// groups have been) and what is added to them.
struct RowTerms {
  float scales[2] = {1, 1}, biases[2] = {0, 0};

  template <typename S>
  __device__ __forceinline__ void load(const WideParams& p, int block) {
    const int warp = threadIdx.x % 128 / 32, r = threadIdx.x % 32 / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = block * kTileRows + warp * 16 + half * 8 + r;
      if (row >= p.n) continue;
      scales[half] = row_scale_of<S::kFormat>(p.weight, p.layout, row);
      if (p.epilogue.bias != nullptr) biases[half] = p.epilogue.bias[row];
    }
  }
};

// From registers to y by way of rows of bf16 in shared memory, of 128 bytes, whose 16-byte
// pieces are exchanged by the row's number against bank conflicts.
// sum_of(i) is this thread's i-th sum; block: the 64 rows', from first_token.
template <typename S, typename Sum>
__device__ __forceinline__ void store_direct(const WideParams& p, int block, int first_token,
                                             int group, const RowTerms& terms, float* sums,
                                             const float* token_scales, const Sum& sum_of) {
  const int thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
  const int t = lane % 4;
  const uint32_t staged_rows = shared_address(sums);
  // Where this lane's 16 bytes of a pair of 8 tokens go.
  const int own_row = lane / 16 * 8 + lane % 8;
  const uint32_t to =
      staged_rows + own_row * 128 + ((warp * 2 + lane / 8 % 2) ^ (own_row % 8)) * 16;
  const int row = block * kTileRows + thread % 8 * 8;
  auto* const y = static_cast<__nv_bfloat16*>(p.epilogue.y);
#pragma unroll
  for (int piece = 0; piece < S::kTileTokens / S::kDirectTokens; ++piece) {
    named_barrier(1 + group, 128);  // what was staged before has been stored
#pragma unroll
    for (int pair = 0; pair < S::kDirectTokens / 16; ++pair) {
      uint32_t matrices[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int first = piece * S::kDirectTokens + pair * 16 + i / 2 * 8;
        float2 scales = make_float2(1, 1);
        if constexpr (S::kCodes)
          scales = *reinterpret_cast<const float2*>(token_scales + first + 2 * t);
        float values[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          values[e] = sum_of(first / 2 + i % 2 * 2 + e);
          if constexpr (!S::kGrouped) values[e] = __fmul_rn(values[e], terms.scales[i % 2]);
          if constexpr (S::kCodes) values[e] = __fmul_rn(values[e], e == 0 ? scales.x : scales.y);
          if (p.epilogue.bias != nullptr) values[e] = __fadd_rn(values[e], terms.biases[i % 2]);
        }
        matrices[i] = pack_bf16(values[0], values[1]);
      }
      store_transposed(to + pair * (16 * 128), matrices);
    }
    named_barrier(1 + group, 128);
    const int first = first_token + piece * S::kDirectTokens;
#pragma unroll
    for (int i = 0; i < S::kDirectTokens / 16; ++i) {
      const int column = thread / 8 + 16 * i;
      const uint4 eight =
          load_shared_16(staged_rows + column * 128 + ((thread % 8) ^ (column % 8)) * 16);
      if (first + column >= p.m || row >= p.n) continue;
      __nv_bfloat16* const at = y + (first + column) * p.epilogue.y_stride + row;
      if (row + 8 <= p.n) {
        *reinterpret_cast<uint4*>(at) = eight;
      } else {
        const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int e = 0; e < 8; ++e)
          if (row + e < p.n)
            at[e] =
                __ushort_as_bfloat16(static_cast<unsigned short>(words[e / 2] >> (16 * (e % 2))));
      }
    }
  }
}

}  // namespace whit::cuda
