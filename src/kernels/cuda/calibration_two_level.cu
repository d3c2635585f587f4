// The search for two-level scales (quant/weight.h): steps of rows, and for each the groups'
// multiples, by the errors that they cause. A block has one row; a warp has groups of it. Bound by
// the device's memory.
#include <cuda_runtime.h>

#include "kernels/cuda/calibration_kernels.h"
#include "kernels/cuda/calibration_rounding.cuh"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// quantize/grid.cc: TwoLevelRow::multiples, of which the one `below` the largest; 0 where that is
// below the smallest.
__device__ float tried_scale(const TwoLevelTryArgs& args, float whole, float zero, float step) {
  const float exact = whole / step;
  const int most = max(1, min(most_multiple(zero), static_cast<int>(ceilf(exact))));
  const int least = min(max(static_cast<int>(exact * args.least_share), 1), most);
  return most - args.below < least ? 0.0f : static_cast<float>(most - args.below) * step;
}

__global__ void __launch_bounds__(kThreads) plain_rows(TwoLevelSearch search) {
  __shared__ float reduce[32];
  const int warp = threadIdx.x / 32, groups = static_cast<int>(search.groups);
  const float* w = search.w + int64_t{blockIdx.x} * search.k;
  float step = 0;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * search.group_size, count = min(search.group_size, search.k - first);
    const Range range = group_range(w, nullptr, first, count);
    const Params p = int4_params(range.low, range.high, search.symmetric);
    const int64_t at = int64_t{blockIdx.x} * groups + g;
    search.whole[at] = p.scale;
    search.zero[at] = p.zero;
    step = fmaxf(step, p.scale / static_cast<float>(most_multiple(p.zero)));
  }
  step = block_reduce(step, reduce, Largest{});
  if (threadIdx.x == 0) search.least_step[blockIdx.x] = step;
}

__global__ void __launch_bounds__(kThreads) take_steps(TwoLevelSearch search, float share) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row < search.n) search.step[row] = two_level_step_above(search.least_step[row] * share);
}

__global__ void __launch_bounds__(kThreads) try_rows(TwoLevelTryArgs args, int groups) {
  const TwoLevelSearch& search = args.search;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  const float* w = search.w + row * search.k + args.first;
  float* delta = args.delta + row * args.columns;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * search.group_size,
                  last = min(args.columns, first + search.group_size);
    const int64_t at = row * search.groups + args.first / search.group_size + g;
    const float zero = search.zero[at];
    const float scale = tried_scale(args, search.whole[at], zero, search.step[row]);
    const float inverse = 1.0f / scale;
    for (int64_t i = first + lane; i < last; i += 32)
      delta[i] = scale == 0 ? 0.0f : int4_round_trip(w[i], {scale, zero}, inverse) - w[i];
  }
}

__global__ void __launch_bounds__(kThreads) keep_multiples(TwoLevelTryArgs args, int groups) {
  const TwoLevelSearch& search = args.search;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x;
  for (int g = warp; g < groups; g += kWarps) {
    const int64_t first = g * search.group_size,
                  last = min(args.columns, first + search.group_size);
    const int64_t at = row * search.groups + args.first / search.group_size + g;
    const float scale = tried_scale(args, search.whole[at], search.zero[at], search.step[row]);
    if (scale == 0) continue;
    const double cost =
        warp_dot(args.delta + row * args.columns, args.product + row * args.columns, first, last);
    if (lane > 0 || !(args.below == 0 || cost < search.best[at])) continue;
    search.best[at] = cost;
    search.scale[at] = scale;
  }
}

__global__ void __launch_bounds__(kThreads) keep_steps(TwoLevelSearch search, bool first_share) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= search.n) return;
  double total = 0;
  for (int64_t at = row * search.groups; at < (row + 1) * search.groups; ++at)
    total += search.best[at];
  if (!first_share && !(total < search.least_cost[row])) return;
  search.least_cost[row] = total;
  search.kept_step[row] = search.step[row];
  for (int64_t at = row * search.groups; at < (row + 1) * search.groups; ++at)
    search.kept_scale[at] = search.scale[at];
}

unsigned rows_grid(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

int groups_of(const TwoLevelTryArgs& args) {
  const int64_t size = args.search.group_size;
  return static_cast<int>((args.columns + size - 1) / size);
}

}  // namespace

void two_level_begin(const TwoLevelSearch& search, CUstream_st* stream) {
  plain_rows<<<static_cast<unsigned>(search.n), kThreads, 0, stream>>>(search);
  check(cudaGetLastError(), "launch");
}

void two_level_steps(const TwoLevelSearch& search, float share, CUstream_st* stream) {
  take_steps<<<rows_grid(search.n), kThreads, 0, stream>>>(search, share);
  check(cudaGetLastError(), "launch");
}

void two_level_try(const TwoLevelTryArgs& args, CUstream_st* stream) {
  try_rows<<<static_cast<unsigned>(args.search.n), kThreads, 0, stream>>>(args, groups_of(args));
  check(cudaGetLastError(), "launch");
}

void two_level_keep(const TwoLevelTryArgs& args, CUstream_st* stream) {
  keep_multiples<<<static_cast<unsigned>(args.search.n), kThreads, 0, stream>>>(args,
                                                                                groups_of(args));
  check(cudaGetLastError(), "launch");
}

void two_level_end(const TwoLevelSearch& search, bool first_share, CUstream_st* stream) {
  keep_steps<<<rows_grid(search.n), kThreads, 0, stream>>>(search, first_share);
  check(cudaGetLastError(), "launch");
}

}  // namespace whit::cuda
