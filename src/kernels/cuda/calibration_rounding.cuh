// The rules by which weights are rounded, with the bits of quant/weight.h.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/block_reduce.cuh"

namespace whit::cuda {

struct Range {
  float low, high;
};
struct Params {
  float scale, zero;
};
struct Largest {
  __device__ inline float operator()(float a, float b) const { return fmaxf(a, b); }
};

__device__ inline float round_nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }
__device__ inline float clamp(float x, float low, float high) { return fminf(fmaxf(x, low), high); }
__device__ inline float at_scale(const float* s, int64_t i, float w) {
  return s == nullptr ? w : w * s[i];
}

__device__ inline float stored(float scale) {
  return __half2float(__float2half_rn(clamp(scale, 0x1p-24f, 65504.0f)));
}

// quant/weight.cc: int4_params.
__device__ inline Params int4_params(float low, float high, bool symmetric) {
  if (symmetric) return {stored(fmaxf(high, -low) / 7.5f), 8.0f};
  low = fminf(low, 0.0f);
  high = fmaxf(high, 0.0f);
  const float scale = stored((high - low) / 15.0f);
  return {scale, clamp(rintf(-low / scale), 0.0f, 15.0f)};
}

__device__ inline float int4_round_trip(float w, Params p, float inverse) {
  const float code = clamp(round_nearest(w * inverse) + p.zero, 0.0f, 15.0f);
  return (code - p.zero) * p.scale;
}

__device__ inline int most_multiple(float zero) {
  const int largest = static_cast<int>(zero > 7.5f ? zero : 15 - zero);
  return largest <= 8 ? 15 : 127 / largest;
}

// quant/weight.cc: two_level_step_above.
__device__ inline float two_level_step_above(float step) {
  step = clamp(step, 0x1p-24f, 4352.0f);
  int exponent = 0;
  frexpf(step, &exponent);
  const float unit = ldexpf(1.0f, max(exponent - 7, -24));
  return ceilf(step / unit) * unit;
}

// quant/weight.cc: what int4_row_params does to a group once the row's step is known.
__device__ inline Params on_step(Params whole, Range range, float step, bool symmetric) {
  Params p = whole;
  int multiple = max(1, static_cast<int>(rintf(whole.scale / step)));
  do {
    p.scale = static_cast<float>(multiple) * step;
    if (!symmetric) p.zero = clamp(rintf(-fminf(range.low, 0.0f) / p.scale), 0.0f, 15.0f);
  } while (multiple-- > most_multiple(p.zero));
  return p;
}

// Of a warp's group: `count` values from `first` on.
__device__ inline Range group_range(const float* w, const float* s, int64_t first, int64_t count) {
  const int lane = threadIdx.x % 32;
  float low = at_scale(s, first, w[first]), high = low;
  for (int64_t i = lane; i < count; i += 32) {
    const float value = at_scale(s, first + i, w[first + i]);
    low = fminf(low, value);
    high = fmaxf(high, value);
  }
  return {-warp_reduce(-low, Largest{}), warp_reduce(high, Largest{})};
}

// Of a warp: Σ a·b of the columns [first, last), in every lane.
__device__ inline double warp_dot(const float* a, const float* b, int64_t first, int64_t last) {
  float part = 0;
  for (int64_t i = first + threadIdx.x % 32; i < last; i += 32) part += a[i] * b[i];
  double sum = part;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  return sum;
}

}  // namespace whit::cuda
