// Values of a row and what they become, wherever a row is made: the same operations in the same
// order in kernels of their own (rows.cu) and in products that make the rows that they read.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>

#include <cfloat>
#include <cstdint>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/code_type.h"

namespace whit::cuda {

// Threads that add up a row of `width` values, each taking `values` at a time: part of the numerics
// of a norm, since it fixes the order of the sum.
constexpr int kMostRowThreads = 1024;
__host__ __device__ inline int threads_of_row(int64_t width, int values) {
  int threads = 64;
  while (threads < kMostRowThreads && threads * values < width) threads *= 2;
  return threads;
}

// N values from column i on, N 8 (aligned to 16 bytes) or 2.
template <int N>
__device__ __forceinline__ void load(float (&v)[N], const float* x, int i, int n) {
  if constexpr (N == 8) {
    const float4 low = *reinterpret_cast<const float4*>(x + i);
    const float4 high = *reinterpret_cast<const float4*>(x + i + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  } else {
    v[0] = x[i];
    v[1] = i + 1 < n ? x[i + 1] : 0.0f;
  }
}

template <int N>
__device__ __forceinline__ void load(float (&v)[N], const __nv_bfloat16* x, int i, int n) {
  if constexpr (N == 8) {
    const uint4 raw = *reinterpret_cast<const uint4*>(x + i);
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      v[2 * j] = __uint_as_float(words[j] << 16);
      v[2 * j + 1] = __uint_as_float(words[j] & 0xffff0000u);
    }
  } else {
    v[0] = __bfloat162float(x[i]);
    v[1] = i + 1 < n ? __bfloat162float(x[i + 1]) : 0.0f;
  }
}

template <int N>
__device__ __forceinline__ float largest(const float (&v)[N], float magnitude) {
  float of[N];
#pragma unroll
  for (int j = 0; j < N; ++j) of[j] = fabsf(v[j]);
    // In pairs, of which many are compared at once.
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2)
#pragma unroll
    for (int j = 0; j < half; ++j) of[j] = MaxNan{}(of[j], of[j + half]);
  return MaxNan{}(of[0], magnitude);
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

// a / b, where `reciprocal` is 1 / b rounded to nearest: the bits of the division by three
// operations that wait for each other instead of a dozen (Markstein, IBM J. Res. Dev. 34, 1990).
// Compared with a / b for every mantissa of a and each b that is a multiple of 8 up to 1024.
__device__ __forceinline__ float divide(float a, float b, float reciprocal) {
  if (!(a >= 0x1p-90f && a <= 0x1p120f)) return __fdiv_rn(a, b);
  const float quotient = __fmul_rn(a, reciprocal);
  return fmaf(fmaf(-quotient, b, a), reciprocal, quotient);
}

// The codes of values, by the inverse of their scale.
__device__ __forceinline__ float inverse_of_scale(float scale) {
  return scale >= FLT_MIN && scale <= FLT_MAX ? __frcp_rn(scale) : 0.0f;
}
// The largest magnitude of codes: what a row's largest becomes.
__host__ __device__ constexpr float largest_code(CodeType type) {
  return type == CodeType::kInt8 ? 127.0f : 448.0f;
}
__device__ __forceinline__ float scale_of_magnitude(float magnitude, CodeType type) {
  const float reciprocal = type == CodeType::kInt8 ? 1.0f / largest_code(CodeType::kInt8)
                                                   : 1.0f / largest_code(CodeType::kE4m3);
  return divide(magnitude, largest_code(type), reciprocal);
}
// e4m3, nearest, at most 448 in magnitude; never NaN (ops/reference/quantize.h).
template <int N>
__device__ __forceinline__ void to_e4m3(const float (&v)[N], float inverse, int8_t (&codes)[N]) {
#pragma unroll
  for (int j = 0; j < N; j += 2) {
    const __nv_fp8x2_storage_t pair = __nv_cvt_float2_to_fp8x2(
        make_float2(fmaxf(v[j] * inverse, -448.0f), fmaxf(v[j + 1] * inverse, -448.0f)),
        __NV_SATFINITE, __NV_E4M3);
    codes[j] = static_cast<int8_t>(pair & 0xff);
    codes[j + 1] = static_cast<int8_t>(pair >> 8);
  }
}
// Nearest, ties to even, at most 127 in magnitude: a number of such magnitude plus 1.5 · 2²³ is
// rounded so, and its low byte is the code. NaN becomes −127.
template <int N>
__device__ __forceinline__ void to_int8(const float (&v)[N], float inverse, int8_t (&codes)[N]) {
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float bounded = fminf(fmaxf(v[j] * inverse, -127.0f), 127.0f);
    codes[j] = static_cast<int8_t>(__float_as_uint(__fadd_rn(bounded, 12582912.0f)) & 0xff);
  }
}
template <int N>
__device__ __forceinline__ void to_codes(CodeType type, const float (&v)[N], float inverse,
                                         int8_t (&codes)[N]) {
  if (type == CodeType::kE4m3)
    to_e4m3(v, inverse, codes);
  else
    to_int8(v, inverse, codes);
}

// Of eight values, to 8 bytes that are aligned.
__device__ __forceinline__ void store_codes(CodeType type, const float (&v)[8], float inverse,
                                            int8_t* to) {
  alignas(8) int8_t codes[8];
  to_codes(type, v, inverse, codes);
  *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(codes);
}

}  // namespace whit::cuda
