// Small operations of an f32 forward pass over calibration windows. Bound by the device's memory.
#include <cuda_runtime.h>

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/calibration_kernels.h"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 16;

unsigned blocks_of(int64_t count) {
  return static_cast<unsigned>(
      std::max<int64_t>(1, std::min((count + kThreads - 1) / kThreads, kMostBlocks)));
}

// f(i) for i < count.
template <typename F>
__global__ void for_each(int64_t count, F f) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads)
    f(i);
}

template <typename F>
void launch_for_each(int64_t count, F f, CUstream_st* stream) {
  if (count == 0) return;
  for_each<<<blocks_of(count), kThreads, 0, stream>>>(count, f);
  check(cudaGetLastError(), "launch");
}

__global__ void __launch_bounds__(kThreads) norm(NormF32Args args) {
  __shared__ float reduce[32];
  const float* x = args.x + int64_t{blockIdx.x} * args.d;
  float* y = args.y + int64_t{blockIdx.x} * args.d;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) squares += x[i] * x[i];
  const float mean = block_reduce(squares, reduce, Add{}) / static_cast<float>(args.d);
  const float inverse = 1.0f / sqrtf(mean + args.eps);
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) y[i] = x[i] * inverse * args.weight[i];
}

struct Rope {
  RopeF32Args args;
  int64_t half;
  __device__ void operator()(int64_t i) const {
    const int64_t pair = i % half, head = i / half % args.heads, row = i / half / args.heads;
    float* x = args.x + (row * args.heads + head) * args.head_dim + pair;
    const int64_t at = row % args.length * half + pair;
    const float a = x[0], b = x[half], cos = args.cos[at], sin = args.sin[at];
    x[0] = a * cos - b * sin;
    x[half] = b * cos + a * sin;
  }
};

struct SiluMul {
  const float* gate;
  const float* up;
  float* y;
  __device__ void operator()(int64_t i) const {
    const float x = gate[i];
    y[i] = x / (1.0f + expf(-x)) * up[i];
  }
};

struct Sum {
  const float* x;
  const float* r;
  float* y;
  __device__ void operator()(int64_t i) const { y[i] = x[i] + r[i]; }
};

struct Bias {
  float* y;
  const float* bias;
  int64_t n;
  __device__ void operator()(int64_t i) const { y[i] += bias[i % n]; }
};

}  // namespace

void norm_f32(const NormF32Args& args, CUstream_st* stream) {
  if (args.t == 0) return;
  norm<<<static_cast<unsigned>(args.t), kThreads, 0, stream>>>(args);
  check(cudaGetLastError(), "launch");
}

void rope_f32(const RopeF32Args& args, CUstream_st* stream) {
  const int64_t half = args.head_dim / 2;
  launch_for_each(args.t * args.heads * half, Rope{args, half}, stream);
}

void silu_mul_f32(const float* gate, const float* up, float* y, int64_t count,
                  CUstream_st* stream) {
  launch_for_each(count, SiluMul{gate, up, y}, stream);
}

void add_f32(const float* x, const float* r, float* y, int64_t count, CUstream_st* stream) {
  launch_for_each(count, Sum{x, r, y}, stream);
}

void add_bias_f32(float* y, const float* bias, int64_t t, int64_t n, CUstream_st* stream) {
  launch_for_each(t * n, Bias{y, bias, n}, stream);
}

const CalibrationOps& calibration_ops() {
  static const CalibrationOps kOps = {
      norm_f32,          rope_f32,        attention_f32,   silu_mul_f32,  add_f32,
      add_bias_f32,      magnitudes,      copy_f32,        round_trip,    subtract,
      round_activations, mean_squares,    scale_f32,       sum_products,  clip,
      clip_keep,         two_level_begin, two_level_steps, two_level_try, two_level_keep,
      two_level_end};
  return kOps;
}

}  // namespace whit::cuda
