// Row-wise operations, one block a row: RMSNorm, SiLU·mul and quantization to int8 or e4m3, each
// reading its input once; the row waits in shared memory for its mean square or its largest
// magnitude. Few long rows are shared by the blocks of a cluster where only their largest magnitude
// is common, which is the same in any order.
//
// Bound: at few rows latency (one block reads 8 to 60 KB: 1–2 µs), at many the device's memory.
#include <cooperative_groups.h>

#include <cfloat>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/row_values.cuh"
#include "kernels/cuda/small_ops_table.h"

namespace whit::cuda {
namespace {

constexpr int kThreads = kMostRowThreads;
// What a block may have of shared memory on every GPU from SM 8.0 up (8.6: 99 KB).
constexpr int64_t kMaxRow = 99 * 1024 / 4 - 32;

// Blocks that share a long row.
constexpr int kRowCluster = 8;
constexpr int64_t kLongRow = 8192, kFewRows = 16;

struct RowShared {
  float reduce[32];
  float magnitude[kRowCluster];  // of the blocks' parts
  float row[];
};

// Values that a thread takes at a time: eight where rows are aligned to 16 bytes, else two.
template <bool kWide>
constexpr int kValues = kWide ? 8 : 2;

// Rows in shared memory have room for a whole number of pieces.
template <int N>
__device__ __forceinline__ void keep(float* row, int i, const float (&v)[N]) {
  if constexpr (N == 8) {
    *reinterpret_cast<float4*>(row + i) = make_float4(v[0], v[1], v[2], v[3]);
    *reinterpret_cast<float4*>(row + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
  } else {
    row[i] = v[0];
    row[i + 1] = v[1];
  }
}

// What a block has of its row.
struct Part {
  int64_t row;
  int begin, end;
};
__device__ __forceinline__ Part part_of_row(int n) {
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  const int blocks = static_cast<int>(cluster.num_blocks());
  const int size = (n + 8 * blocks - 1) / (8 * blocks) * 8;
  const int begin = min(n, size * static_cast<int>(cluster.block_rank()));
  return {blockIdx.x / blocks, begin, min(n, begin + size)};
#else
  return {blockIdx.x, 0, n};
#endif
}

// Before largest_of_row: no block writes to another that has not begun.
__device__ __forceinline__ void join_cluster() {
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  if (cluster.num_blocks() > 1) cluster.barrier_arrive();
#endif
}
// The largest of all threads that have a part of the row, in each of them.
__device__ __forceinline__ float largest_of_row(float magnitude, RowShared& shared) {
  magnitude = block_reduce(magnitude, shared.reduce, MaxNan{});
#if __CUDA_ARCH__ >= 900
  const auto cluster = cooperative_groups::this_cluster();
  if (cluster.num_blocks() == 1) return magnitude;
  // Each tells all, so that nobody reads what is far away.
  cluster.barrier_wait();
  if (threadIdx.x < cluster.num_blocks())
    cluster.map_shared_rank(shared.magnitude, threadIdx.x)[cluster.block_rank()] = magnitude;
  cluster.sync();
#pragma unroll
  for (const float of_block : shared.magnitude) magnitude = MaxNan{}(of_block, magnitude);
#endif
  return magnitude;
}

// Writes a part of a row, its values in shared memory (each thread has written and reads its own
// columns alone), as bf16 and as codes. `magnitude`: the largest of this thread's columns.
template <bool kWide>
__device__ __forceinline__ void write_row(const RowsOut& out, const Part& part, RowShared& shared,
                                          float magnitude) {
  constexpr int N = kValues<kWide>;
  const int64_t row = part.row;
  const int n = part.end;
  const float* kept = shared.row - part.begin;
  float v[N];
  if (out.y != nullptr) {
    auto* y = static_cast<__nv_bfloat16*>(out.y) + row * out.y_stride;
    for (int i = part.begin + N * threadIdx.x; i < n; i += N * blockDim.x) {
      load(v, kept, i, n);
      if constexpr (kWide)
        store_bf16(v, y + i);
      else
        for (int j = 0; j < N && i + j < n; ++j) y[i + j] = __float2bfloat16_rn(v[j]);
    }
  }
  if (out.q == nullptr) return;
  float scale = out.static_scale;
  if (!(scale > 0)) scale = scale_of_magnitude(largest_of_row(magnitude, shared), out.codes);
  const float inverse = inverse_of_scale(scale);
  if (scale < FLT_MIN) scale = 0.0f;
  if (threadIdx.x == 0 && part.begin == 0) out.scale[row] = scale;
  int8_t* q = static_cast<int8_t*>(out.q) + row * out.q_stride;
  for (int i = part.begin + N * threadIdx.x; i < n; i += N * blockDim.x) {
    load(v, kept, i, n);
    if constexpr (kWide) {
      store_codes(out.codes, v, inverse, q + i);
    } else {
      int8_t codes[N];
      to_codes(out.codes, v, inverse, codes);
      for (int j = 0; j < N && i + j < n; ++j) q[i + j] = codes[j];
    }
  }
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(RmsNormArgs args) {
  constexpr int N = kValues<kWide>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  let_next_kernel_launch();
  const int64_t row = blockIdx.x;
  const int n = static_cast<int>(args.d), first = N * threadIdx.x;
  // Weights are nobody's result: they come while the kernel before ends.
  float weight[N] = {};
  if (first < n) load(weight, args.weight, first, n);
  wait_for_previous_kernel();
  const float* x = args.x + (args.rows != nullptr ? args.rows[row] : row) * args.d;
  float squares = 0, v[N];
  for (int i = first; i < n; i += N * blockDim.x) {
    load(v, x, i, n);
    keep(shared.row, i, v);
#pragma unroll
    for (int j = 0; j < N; ++j) squares = fmaf(v[j], v[j], squares);
  }
  const float mean = block_reduce(squares, shared.reduce, Add{}) / static_cast<float>(n);
  const float factor = 1.0f / sqrtf(mean + args.eps);
  float magnitude = 0;
  for (int i = first; i < n; i += N * blockDim.x) {
    if (i != first) load(weight, args.weight, i, n);
    load(v, shared.row, i, n);
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = v[j] * factor * weight[j];
    magnitude = largest(v, magnitude);
    keep(shared.row, i, v);
  }
  write_row<kWide>(args.out, {row, 0, n}, shared, magnitude);
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulArgs args) {
  constexpr int N = kValues<kWide>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  let_next_kernel_launch();
  join_cluster();
  wait_for_previous_kernel();
  const Part part = part_of_row(static_cast<int>(args.f));
  const int64_t row = part.row;
  const int n = part.end;
  float* kept = shared.row - part.begin;
  const auto* gate = static_cast<const __nv_bfloat16*>(args.gate) + row * args.gate_stride;
  const auto* up = static_cast<const __nv_bfloat16*>(args.up) + row * args.up_stride;
  float magnitude = 0;
#pragma unroll 2
  for (int i = part.begin + N * threadIdx.x; i < n; i += N * blockDim.x) {
    float g[N], u[N];
    load(g, gate, i, n);
    load(u, up, i, n);
#pragma unroll
    for (int j = 0; j < N; ++j) g[j] = silu_mul(g[j], u[j]);
    magnitude = largest(g, magnitude);
    keep(kept, i, g);
  }
  write_row<kWide>(args.out, part, shared, magnitude);
}

template <bool kWide>
__global__ void __launch_bounds__(kThreads) quantize_kernel(QuantizeArgs args) {
  constexpr int N = kValues<kWide>;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<RowShared*>(memory);
  let_next_kernel_launch();
  join_cluster();
  wait_for_previous_kernel();
  const Part part = part_of_row(static_cast<int>(args.k));
  const int64_t row = part.row;
  const int n = part.end;
  float* kept = shared.row - part.begin;
  const auto* x = static_cast<const __nv_bfloat16*>(args.x) + row * args.x_stride;
  float magnitude = 0, v[N];
  for (int i = part.begin + N * threadIdx.x; i < n; i += N * blockDim.x) {
    load(v, x, i, n);
    magnitude = largest(v, magnitude);
    keep(kept, i, v);
  }
  write_row<kWide>(args.out, part, shared, magnitude);
}

template <typename... Pointers>
bool aligned(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}
bool aligned_out(const RowsOut& out) {
  return aligned(out.y, out.q) && out.y_stride % 8 == 0 && out.q_stride % 16 == 0;
}

// What blocks that share a row come together for.
bool shares_scale(const RowsOut& out) { return out.q != nullptr && !(out.static_scale > 0); }

template <typename Args>
void launch_rows(void (*wide)(Args), void (*narrow)(Args), bool is_wide, int64_t rows,
                 int64_t width, bool may_share, const Args& args, cudaStream_t stream) {
  if (rows == 0) return;
  if (width > kMaxRow)
    throw Error(ErrorKind::kUnsupported,
                "rows of {} values are wider than the {} that the CUDA backend's norms and "
                "activations hold; use --backend cpu",
                width, kMaxRow);
  void (*kernel)(Args) = is_wide ? wide : narrow;
  const int cluster =
      may_share && is_wide && rows <= kFewRows && width >= kLongRow && kernels_wait() ? kRowCluster
                                                                                      : 1;
  const int64_t part = (width + 8 * cluster - 1) / (8 * cluster) * 8;
  const int shared = static_cast<int>(sizeof(RowShared) + part * 4);
  if (shared > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "asking for shared memory");
  const int threads = threads_of_row(part, is_wide ? 8 : 2);
  launch_clusters(kernel, dim3(static_cast<unsigned>(rows * cluster)), cluster, dim3(threads),
                  shared, stream, args);
}

}  // namespace

void rms_norm(const RmsNormArgs& args, cudaStream_t stream) {
  const bool wide = args.d % 8 == 0 && aligned(args.x, args.weight) && aligned_out(args.out);
  launch_rows(rms_norm_kernel<true>, rms_norm_kernel<false>, wide, args.t, args.d, false, args,
              stream);
}
void silu_mul(const SiluMulArgs& args, cudaStream_t stream) {
  const bool wide = args.f % 8 == 0 && aligned(args.gate, args.up) && args.gate_stride % 8 == 0 &&
                    args.up_stride % 8 == 0 && aligned_out(args.out);
  launch_rows(silu_mul_kernel<true>, silu_mul_kernel<false>, wide, args.t, args.f,
              shares_scale(args.out), args, stream);
}
void quantize(const QuantizeArgs& args, cudaStream_t stream) {
  const bool wide =
      args.k % 8 == 0 && aligned(args.x) && args.x_stride % 8 == 0 && aligned_out(args.out);
  launch_rows(quantize_kernel<true>, quantize_kernel<false>, wide, args.t, args.k,
              shares_scale(args.out), args, stream);
}

}  // namespace whit::cuda
