// Row-wise operations, one block a row: RMSNorm, SiLU·mul and int8 quantization, each reading its
// input once; the row waits in shared memory for its mean square or its largest magnitude.
//
// Bound: at few rows latency (one block reads 8 to 60 KB: 1–2 µs), at many the device's memory.
#include <cuda_bf16.h>

#include <cfloat>

#include "kernels/cuda/block_reduce.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_ops_table.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = 512;
// What a block may have of shared memory on every GPU from SM 8.0 up (8.6: 99 KB).
constexpr int64_t kMaxRow = 99 * 1024 / 4 - 32;

struct RowShared {
  float reduce[32];
  float row[];
};

// Writes one row, its values in shared memory (each thread has written and reads its own columns
// alone), as bf16 and as int8 codes. `magnitude`: the largest of this thread's columns.
__device__ __forceinline__ void write_row(const RowsOut& out, int64_t row, int n, RowShared& shared,
                                          float magnitude) {
  if (out.y != nullptr) {
    auto* y = static_cast<__nv_bfloat16*>(out.y) + row * out.y_stride;
    for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x) {
      if (i + 1 < n)
        *reinterpret_cast<__nv_bfloat162*>(y + i) =
            __floats2bfloat162_rn(shared.row[i], shared.row[i + 1]);
      else
        y[i] = __float2bfloat16_rn(shared.row[i]);
    }
  }
  if (out.q == nullptr) return;
  float scale = out.static_scale;
  if (!(scale > 0)) scale = __fdiv_rn(block_reduce(magnitude, shared.reduce, MaxNan{}), 127.0f);
  const float inverse = scale >= FLT_MIN && scale <= FLT_MAX ? __fdiv_rn(1.0f, scale) : 0.0f;
  if (scale < FLT_MIN) scale = 0.0f;
  if (threadIdx.x == 0) out.scale[row] = scale;
  int8_t* q = out.q + row * out.q_stride;
  const auto code = [&](int i) {
    return static_cast<int8_t>(fminf(fmaxf(rintf(shared.row[i] * inverse), -127.0f), 127.0f));
  };
  for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x) {
    if (i + 1 < n)
      *reinterpret_cast<char2*>(q + i) = make_char2(code(i), code(i + 1));
    else
      q[i] = code(i);
  }
}

__device__ __forceinline__ float2 load_pair(const float* x, int i, int n) {
  if (i + 1 < n) return *reinterpret_cast<const float2*>(x + i);
  return {x[i], 0.0f};
}

// bf16 at a column that need not be even.
__device__ __forceinline__ float2 load_pair(const __nv_bfloat16* x, int i, int n) {
  if (i + 1 < n) {
    if (reinterpret_cast<uintptr_t>(x + i) % 4 == 0)
      return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(x + i));
    return {__bfloat162float(x[i]), __bfloat162float(x[i + 1])};
  }
  return {__bfloat162float(x[i]), 0.0f};
}

__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  wait_for_previous_kernel();
  let_next_kernel_launch();
  const int64_t row = blockIdx.x;
  const int n = static_cast<int>(args.d);
  const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.d;
  float squares = 0;
  for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x) {
    const float2 pair = load_pair(x, i, n);
    *reinterpret_cast<float2*>(shared.row + i) = pair;
    squares = fmaf(pair.x, pair.x, squares);
    squares = fmaf(pair.y, pair.y, squares);
  }
  const float mean = block_reduce(squares, shared.reduce, Add{}) / static_cast<float>(n);
  const float factor = 1.0f / sqrtf(mean + args.eps);
  float magnitude = 0;
  for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x)
    for (int j = i; j < min(i + 2, n); ++j) {
      const float y = shared.row[j] * factor * args.weight[j];
      shared.row[j] = y;
      magnitude = MaxNan{}(fabsf(y), magnitude);
    }
  write_row(args.out, row, n, shared, magnitude);
}

__device__ __forceinline__ float silu_mul(float gate, float up) {
  return gate / (1.0f + expf(-gate)) * up;
}

__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  wait_for_previous_kernel();
  let_next_kernel_launch();
  const int64_t row = blockIdx.x;
  const int n = static_cast<int>(args.f);
  const auto* gate = static_cast<const __nv_bfloat16*>(args.gate) + row * args.gate_stride;
  const auto* up = static_cast<const __nv_bfloat16*>(args.up) + row * args.up_stride;
  float magnitude = 0;
#pragma unroll 4
  for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x) {
    const float2 g = load_pair(gate, i, n), u = load_pair(up, i, n);
    const float2 y = {silu_mul(g.x, u.x), silu_mul(g.y, u.y)};
    *reinterpret_cast<float2*>(shared.row + i) = y;
    magnitude = MaxNan{}(fabsf(y.x), MaxNan{}(fabsf(y.y), magnitude));
  }
  write_row(args.out, row, n, shared, magnitude);
}

__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs args) {
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  wait_for_previous_kernel();
  let_next_kernel_launch();
  const int64_t row = blockIdx.x;
  const int n = static_cast<int>(args.k);
  const auto* x = static_cast<const __nv_bfloat16*>(args.x) + row * args.x_stride;
  float magnitude = 0;
  for (int i = 2 * threadIdx.x; i < n; i += 2 * blockDim.x) {
    const float2 pair = load_pair(x, i, n);
    *reinterpret_cast<float2*>(shared.row + i) = pair;
    magnitude = MaxNan{}(fabsf(pair.x), MaxNan{}(fabsf(pair.y), magnitude));
  }
  write_row(args.out, row, n, shared, magnitude);
}

template <typename Args>
void launch_rows(void (*kernel)(Args), int64_t rows, int64_t width, const Args& args,
                 cudaStream_t stream) {
  if (rows == 0) return;
  if (width > kMaxRow)
    throw Error(ErrorKind::kUnsupported,
                "rows of {} values are wider than the {} that the CUDA backend's norms and "
                "activations hold; use --backend cpu",
                width, kMaxRow);
  const int shared = static_cast<int>(sizeof(RowShared) + (width + 1) / 2 * 8);
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "asking for shared memory");
  // A thread has at least two columns.
  int threads = 64;
  while (threads < kThreads && threads * 4 < width) threads *= 2;
  launch_dependent(kernel, dim3(static_cast<unsigned>(rows)), dim3(threads), shared, stream, args);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  launch_rows(rms_norm_kernel, args.t, args.d, args, stream);
}
void silu_mul(const SiluMulArgs& args, cudaStream_t stream) {
  launch_rows(silu_mul_kernel, args.t, args.f, args, stream);
}
void quantize(const QuantizeArgs& args, cudaStream_t stream) {
  launch_rows(quantize_kernel, args.t, args.k, args, stream);
}

}  // namespace whit::cuda
