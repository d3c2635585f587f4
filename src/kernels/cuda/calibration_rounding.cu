// Roundings of weights and activations with the bits of quant/weight.h and ops/ops.h, and the
// range search of AWQ's clipping. A block has one row; a warp has groups of it.
// Bound by the device's memory: a round trip reads a weight from it once (the second time from a
// cache) and writes it once.
#include <cuda_runtime.h>

#include "kernels/cuda/calibration_kernels.h"
#include "kernels/cuda/calibration_rounding.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/row_values.cuh"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Of symmetric codes of 8 bits.
__device__ float nearest_code(CodeType type, float x) {
  return type == CodeType::kE4m3 ? round_to_e4m3(x) : clamp(round_nearest(x), -127.0f, 127.0f);
}

__global__ void __launch_bounds__(kThreads) round_trip_int4(RoundTripArgs args, int groups) {
  extern __shared__ float shared[];  // [groups] ranges, then [groups] parameters
  __shared__ float reduce[32];
  auto* ranges = reinterpret_cast<Range*>(shared);
  auto* params = reinterpret_cast<Params*>(shared) + groups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* w = args.w + int64_t{blockIdx.x} * args.k;
  float* out = args.out + int64_t{blockIdx.x} * args.k;
  float step = 0;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * args.group_size, count = min(args.group_size, args.k - first);
    Range range = group_range(w, args.s, first, count);
    if (args.clip != nullptr) {
      const float bound = args.clip[int64_t{blockIdx.x} * groups + g];
      range = {fmaxf(range.low, -bound), fminf(range.high, bound)};
    }
    const Params p = int4_params(range.low, range.high, args.symmetric);
    if (lane == 0) {
      ranges[g] = range;
      params[g] = p;
    }
    step = fmaxf(step, p.scale / static_cast<float>(most_multiple(p.zero)));
  }
  if (args.two_level) {
    step = two_level_step_above(block_reduce(step, reduce, Largest{}));
    for (int g = threadIdx.x; g < groups; g += kThreads)
      params[g] = on_step(params[g], ranges[g], step, args.symmetric);
    __syncthreads();
  } else {
    __syncwarp();
  }
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * args.group_size, last = min(args.k, first + args.group_size);
    const Params p = params[g];
    const float inverse = 1.0f / p.scale;
    for (int64_t i = first + lane; i < last; i += 32)
      out[i] = int4_round_trip(at_scale(args.s, i, w[i]), p, inverse);
  }
}

__global__ void __launch_bounds__(kThreads) round_trip_channels(RoundTripArgs args) {
  __shared__ float reduce[32];
  const float* w = args.w + int64_t{blockIdx.x} * args.k;
  float* out = args.out + int64_t{blockIdx.x} * args.k;
  float largest = 0;
  for (int64_t i = threadIdx.x; i < args.k; i += kThreads)
    largest = fmaxf(largest, fabsf(at_scale(args.s, i, w[i])));
  largest = block_reduce(largest, reduce, Largest{});
  const float scale = fmaxf(largest, 1e-30f) / largest_code(args.codes), inverse = 1.0f / scale;
  for (int64_t i = threadIdx.x; i < args.k; i += kThreads)
    out[i] = nearest_code(args.codes, at_scale(args.s, i, w[i]) * inverse) * scale;
}

__global__ void __launch_bounds__(kThreads) subtract_rows(SubtractArgs args) {
  const int64_t row = int64_t{blockIdx.x} * args.k;
  for (int64_t i = threadIdx.x; i < args.k; i += kThreads) {
    const float value = args.out[row + i];
    args.out[row + i] = (args.s == nullptr ? value : value / args.s[i]) - args.w[row + i];
  }
}

__global__ void __launch_bounds__(kThreads) round_rows(RoundActivationsArgs args) {
  __shared__ float reduce[32];
  const float* x = args.x + int64_t{blockIdx.x} * args.k;
  float* delta = args.delta + int64_t{blockIdx.x} * args.k;
  float largest = 1e-9f;
  for (int64_t i = threadIdx.x; i < args.k; i += kThreads)
    largest = fmaxf(largest, fabsf(args.s == nullptr ? x[i] : x[i] / args.s[i]));
  largest = block_reduce(largest, reduce, Largest{});
  const float scale =
      args.static_scale > 0 ? args.static_scale : largest / largest_code(args.codes);
  const float inverse = 1.0f / scale;
  for (int64_t i = threadIdx.x; i < args.k; i += kThreads) {
    const float value = args.s == nullptr ? x[i] : x[i] / args.s[i];
    const float code = nearest_code(args.codes, value * inverse);
    delta[i] = code * scale - value;
  }
}

__global__ void __launch_bounds__(kThreads) clip_rows(ClipArgs args, int groups) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* w = args.w + int64_t{blockIdx.x} * args.k;
  float* delta = args.delta + int64_t{blockIdx.x} * args.columns;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * args.group_size, last = min(args.columns, first + args.group_size);
    const Range range = group_range(w, nullptr, first, last - first);
    const float bound = fmaxf(-range.low, range.high) * args.share;
    const Params p =
        int4_params(fmaxf(range.low, -bound), fminf(range.high, bound), args.symmetric);
    const float inverse = 1.0f / p.scale;
    for (int64_t i = first + lane; i < last; i += 32)
      delta[i] = int4_round_trip(w[i], p, inverse) - w[i];
  }
}

__global__ void __launch_bounds__(kThreads) keep_rows(ClipKeepArgs args, int groups) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const float* w = args.w + row * args.k;
  const float* delta = args.delta + row * args.columns;
  const float* product = args.product + row * args.columns;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * args.group_size, last = min(args.columns, first + args.group_size);
    const double cost = warp_dot(delta, product, first, last);
    const int64_t at = row * args.groups + args.at + g;
    if (args.first_range) {
      const Range range = group_range(w, nullptr, first, last - first);
      if (lane == 0) args.largest[at] = fmaxf(-range.low, range.high);
    }
    __syncwarp();
    if (lane > 0 || !(args.first_range || cost < args.best[at])) continue;
    args.best[at] = cost;
    args.bounds[at] = args.largest[at] * args.share;
  }
}

unsigned rows_grid(int64_t n) { return static_cast<unsigned>(n); }

}  // namespace

void round_trip(const RoundTripArgs& args, CUstream_st* stream) {
  if (args.group_size == 0) {
    round_trip_channels<<<rows_grid(args.n), kThreads, 0, stream>>>(args);
  } else {
    const int64_t groups = (args.k + args.group_size - 1) / args.group_size;
    const auto bytes = static_cast<size_t>(groups) * (sizeof(Range) + sizeof(Params));
    round_trip_int4<<<rows_grid(args.n), kThreads, bytes, stream>>>(args, static_cast<int>(groups));
  }
  check(cudaGetLastError(), "launch");
}

void subtract(const SubtractArgs& args, CUstream_st* stream) {
  subtract_rows<<<rows_grid(args.n), kThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "launch");
}

void round_activations(const RoundActivationsArgs& args, CUstream_st* stream) {
  if (args.t == 0) return;
  round_rows<<<rows_grid(args.t), kThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "launch");
}

void clip(const ClipArgs& args, CUstream_st* stream) {
  const int64_t groups = (args.columns + args.group_size - 1) / args.group_size;
  clip_rows<<<rows_grid(args.n), kThreads, 0, stream>>>(args, static_cast<int>(groups));
  check(cudaGetLastError(), "launch");
}

void clip_keep(const ClipKeepArgs& args, CUstream_st* stream) {
  const int64_t groups = (args.columns + args.group_size - 1) / args.group_size;
  keep_rows<<<rows_grid(args.n), kThreads, 0, stream>>>(args, static_cast<int>(groups));
  check(cudaGetLastError(), "launch");
}

}  // namespace whit::cuda
