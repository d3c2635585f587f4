// Sums over calibration rows and over errors of weights, in an order that shapes alone decide.
// Bound by the device's memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/calibration_kernels.h"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 256;

unsigned columns_grid(int64_t k) { return static_cast<unsigned>((k + kThreads - 1) / kThreads); }

// A thread has one column of kMagnitudeRows rows.
__global__ void __launch_bounds__(kThreads) magnitude_parts(MagnitudesArgs args) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= args.k) return;
  const int64_t first = int64_t{blockIdx.y} * kMagnitudeRows;
  const int64_t last = min(args.t, first + kMagnitudeRows);
  float sum = 0, largest = 0;
  for (int64_t row = first; row < last; ++row) {
    const float magnitude = fabsf(args.x[row * args.k + column]);
    sum += magnitude;
    largest = fmaxf(largest, magnitude);
  }
  float* parts = args.partials + int64_t{blockIdx.y} * 2 * args.k;
  parts[column] = sum;
  parts[args.k + column] = largest;
}

__global__ void __launch_bounds__(kThreads) merge_magnitudes(MagnitudesArgs args, int parts) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= args.k) return;
  float sum = 0, largest = args.largest[column];
  for (int part = 0; part < parts; ++part) {
    sum += args.partials[part * 2 * args.k + column];
    largest = fmaxf(largest, args.partials[(part * 2 + 1) * args.k + column]);
  }
  if (args.sum != nullptr) args.sum[column] += sum;
  args.largest[column] = largest;
}

__global__ void __launch_bounds__(kThreads)
    copy_values(const float* from, float* to, int64_t count) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) to[i] = from[i];
}

__global__ void __launch_bounds__(kThreads)
    mean_of_squares(const float* delta, int64_t t, int64_t k, float* noise) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= k) return;
  float sum = 0;
  for (int64_t row = 0; row < t; ++row) {
    const float d = delta[row * k + column];
    sum += d * d / static_cast<float>(t);
  }
  noise[column] = sum;
}

__global__ void __launch_bounds__(kThreads)
    scale_values(float* x, const float* rows, const float* columns, int64_t t, int64_t k) {
  const int64_t count = t * k;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads)
    x[i] *= rows == nullptr ? columns[i % k] : rows[i / k] * columns[i % k];
}

// Block b has the rows b, b + gridDim, …: sums in f32 over the columns of a thread in one row, in
// f64 across rows and threads.
__global__ void __launch_bounds__(kThreads) sum_rows(SumProductsArgs args) {
  __shared__ double shared[kThreads / 32];
  double total = 0;
  for (int64_t row = blockIdx.x; row < args.t; row += gridDim.x) {
    const float* a = args.a + row * args.a_stride;
    const float* b = args.b + row * args.b_stride;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < args.k; i += kThreads) {
      const float product = args.weights == nullptr ? a[i] * b[i] : args.weights[i] * a[i] * b[i];
      sum += product;
    }
    total += sum;
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    total += __shfl_xor_sync(0xffffffffu, total, offset);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double sum = args.accumulate ? args.partials[blockIdx.x] : 0.0;
  for (const double part : shared) sum += part;
  args.partials[blockIdx.x] = sum;
}

}  // namespace

void magnitudes(const MagnitudesArgs& args, CUstream_st* stream) {
  if (args.t == 0) return;
  const auto parts = static_cast<unsigned>(magnitudes_partials(args.t));
  magnitude_parts<<<dim3(columns_grid(args.k), parts), kThreads, 0, stream>>>(args);
  merge_magnitudes<<<columns_grid(args.k), kThreads, 0, stream>>>(args, static_cast<int>(parts));
  check(cudaGetLastError(), "launch");
}

void copy_f32(const float* from, float* to, int64_t count, CUstream_st* stream) {
  if (count == 0) return;
  copy_values<<<columns_grid(count), kThreads, 0, stream>>>(from, to, count);
  check(cudaGetLastError(), "launch");
}

void mean_squares(const float* delta, int64_t t, int64_t k, float* noise, CUstream_st* stream) {
  mean_of_squares<<<columns_grid(k), kThreads, 0, stream>>>(delta, t, k, noise);
  check(cudaGetLastError(), "launch");
}

void scale_f32(float* x, const float* rows, const float* columns, int64_t t, int64_t k,
               CUstream_st* stream) {
  if (t == 0) return;
  const auto blocks =
      static_cast<unsigned>(std::min<int64_t>((t * k + kThreads - 1) / kThreads, int64_t{1} << 16));
  scale_values<<<blocks, kThreads, 0, stream>>>(x, rows, columns, t, k);
  check(cudaGetLastError(), "launch");
}

void sum_products(const SumProductsArgs& args, CUstream_st* stream) {
  sum_rows<<<static_cast<unsigned>(kSumPartials), kThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "launch");
}

}  // namespace whit::cuda
