// What becomes of a finished sum, the same operations in the same order in every linear kernel.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_layout.h"

namespace whit::cuda {

struct Epilogue {
  const float* x_scale;  // [M] or null
  const float* bias;     // [N] or null
  const void* residual;  // [M, N] or null
  int64_t residual_stride;
  void* y;
  int64_t y_stride;
  bool y_f32;

  __device__ __forceinline__ float residual_at(int64_t row, int64_t column) const {
    if (residual == nullptr) return 0;
    const int64_t at = row * residual_stride + column;
    return y_f32 ? static_cast<const float*>(residual)[at]
                 : __bfloat162float(static_cast<const __nv_bfloat16*>(residual)[at]);
  }
  // value + bias + residual, stored; value is the sum · x_scale, `added` residual_at's.
  __device__ __forceinline__ void store_scaled(float value, int64_t row, int64_t column,
                                               float added) const {
    if (bias != nullptr) value = __fadd_rn(value, bias[column]);
    if (residual != nullptr) value = __fadd_rn(value, added);
    const int64_t at = row * y_stride + column;
    if (y_f32)
      static_cast<float*>(y)[at] = value;
    else
      static_cast<__nv_bfloat16*>(y)[at] = __float2bfloat16_rn(value);
  }
  __device__ __forceinline__ void store_scaled(float value, int64_t row, int64_t column) const {
    store_scaled(value, row, column, residual_at(row, column));
  }
  __device__ __forceinline__ void store(float sum, int64_t row, int64_t column) const {
    store_scaled(x_scale == nullptr ? sum : __fmul_rn(sum, x_scale[row]), row, column);
  }

  // Whether eight neighbours of a row can be moved as vectors.
  bool vectors_of_8() const {
    const auto fits = [](const void* rows, int64_t stride) {
      return reinterpret_cast<uintptr_t>(rows) % 16 == 0 && stride % 8 == 0;
    };
    return fits(y, y_stride) && (residual == nullptr || fits(residual, residual_stride));
  }
  // store_scaled() of columns column … column + 7, those below `columns` of them; column is a
  // multiple of 8, vectors the answer of vectors_of_8.
  __device__ __forceinline__ void store_8(float (&values)[8], int64_t row, int64_t column,
                                          int64_t columns, bool vectors) const {
    if (!vectors || column + 8 > columns) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (column + i < columns) store_scaled(values[i], row, column + i);
      return;
    }
    if (bias != nullptr) {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = __fadd_rn(values[i], bias[column + i]);
    }
    if (y_f32) {
      auto* to = reinterpret_cast<float4*>(static_cast<float*>(y) + row * y_stride + column);
      const auto* from = reinterpret_cast<const float4*>(static_cast<const float*>(residual) +
                                                         row * residual_stride + column);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* v = values + 4 * half;
        if (residual != nullptr) {
          const float4 r = from[half];
          v[0] = __fadd_rn(v[0], r.x), v[1] = __fadd_rn(v[1], r.y);
          v[2] = __fadd_rn(v[2], r.z), v[3] = __fadd_rn(v[3], r.w);
        }
        to[half] = make_float4(v[0], v[1], v[2], v[3]);
      }
      return;
    }
    if (residual != nullptr) {
      const auto* from = static_cast<const __nv_bfloat16*>(residual) + row * residual_stride;
      const uint4 packed = *reinterpret_cast<const uint4*>(from + column);
      const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int i = 0; i < 8; ++i)
        values[i] = __fadd_rn(values[i], __uint_as_float(i % 2 == 0 ? words[i / 2] << 16
                                                                    : words[i / 2] & 0xffff0000u));
    }
    store_bf16(values, static_cast<__nv_bfloat16*>(y) + row * y_stride + column);
  }
};

// Whether sums are integers to the end, and whether rows of the weight have one scale each.
constexpr bool has_exact_sums(LinearFormat format) {
  return format == LinearFormat::kW8A8 || format == LinearFormat::kW4A8TwoLevel;
}
constexpr bool has_row_scales(LinearFormat format) {
  return has_exact_sums(format) || format == LinearFormat::kW8A16;
}
constexpr bool has_token_scales(LinearFormat format) {
  return format != LinearFormat::kW4A16 && format != LinearFormat::kW8A16;
}

// The scale of the weight's row, 1 where groups have been scaled.
template <LinearFormat format>
__device__ __forceinline__ float row_scale_of(const uint8_t* weight, const TileLayout& layout,
                                              int row) {
  if constexpr (has_row_scales(format))
    return reinterpret_cast<const float*>(weight + layout.scales_offset())[row];
  else
    return 1;
}
// What a sum, an integer's bits where sums are exact, becomes with its scales.
template <LinearFormat format>
__device__ __forceinline__ float scaled(uint32_t bits, float row_scale, float x_scale) {
  float sum = __uint_as_float(bits);
  if constexpr (has_exact_sums(format)) sum = __int2float_rn(static_cast<int>(bits));
  if constexpr (has_row_scales(format)) sum = __fmul_rn(sum, row_scale);
  if constexpr (has_token_scales(format)) sum = __fmul_rn(sum, x_scale);
  return sum;
}

inline Epilogue epilogue_of(const LinearArgs& args) {
  return {.x_scale = args.x_scale,
          .bias = args.bias,
          .residual = args.residual,
          .residual_stride = args.residual_stride,
          .y = args.y,
          .y_stride = args.y_stride,
          .y_f32 = args.y_type == OutputType::kF32};
}

}  // namespace whit::cuda
