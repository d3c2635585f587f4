// Causal grouped-query attention in f32 over whole sequences (FlashAttention, Dao et al. 2022, on
// CUDA cores): a block takes 16·kRows queries of one head and walks the keys that they see in
// blocks of 16·kKeys with a running maximum. Thread (y, x) of 16 × 16 holds kRows rows of scores
// and 16th columns x, x + 16, … of the outputs.
//   q [S·L, H·Dh], k, v [S·L, Hkv·Dh] → out [S·L, H·Dh], f32
// Calibration spends about a hundredth of its products here; the bound is shared memory.
#include <cuda_runtime.h>

#include <cmath>

#include "kernels/cuda/calibration_kernels.h"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kSide = 16, kThreads = kSide * kSide;

template <int kColumns>  // of a head that a thread holds: head_dim ≤ 16 · kColumns
struct Tile {
  static constexpr int kDim = kSide * kColumns;
  static constexpr int kRows = kColumns > 8 ? 2 : 4, kKeys = kColumns > 8 ? 1 : 2;
  static constexpr int kQueries = kSide * kRows, kBlock = kSide * kKeys;
  // Rows of q and k are a word longer than their values: columns then lie in different banks.
  float q[kQueries][kDim + 1];
  float k[kBlock][kDim + 1];
  float v[kBlock][kDim];
  float p[kQueries][kBlock + 1];
};

template <typename Combine>
__device__ float reduce_row(float value, Combine combine) {
#pragma unroll
  for (int offset = kSide / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset, kSide));
  return value;
}

template <int kColumns>
__global__ void __launch_bounds__(kThreads) attend(AttentionF32Args args) {
  using T = Tile<kColumns>;
  extern __shared__ float shared[];
  T& tile = *reinterpret_cast<T*>(shared);
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int64_t head = blockIdx.y, kv_head = head / (args.heads / args.kv_heads);
  const int64_t base = int64_t{blockIdx.z} * args.length;  // the sequence's first row
  const int64_t first = int64_t{blockIdx.x} * T::kQueries;
  const int64_t q_stride = args.heads * args.head_dim, kv_stride = args.kv_heads * args.head_dim;
  const int dim = static_cast<int>(args.head_dim);

  for (int i = threadIdx.x; i < T::kQueries * T::kDim; i += kThreads) {
    const int row = i / T::kDim, column = i % T::kDim;
    const int64_t at = first + row;
    tile.q[row][column] = at < args.length && column < dim
                              ? args.q[(base + at) * q_stride + head * dim + column]
                              : 0.0f;
  }
  float most[T::kRows], sum[T::kRows], out[T::kRows][kColumns];
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) {
    most[i] = -INFINITY;
    sum[i] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) out[i][c] = 0;
  }
  const int64_t last = min(first + T::kQueries, args.length);  // keys that any of the queries sees
  const int64_t begin =
      args.sliding_window > 0 ? max(int64_t{0}, first - args.sliding_window + 1) : int64_t{0};
  for (int64_t start = begin / T::kBlock * T::kBlock; start < last; start += T::kBlock) {
    __syncthreads();
    for (int i = threadIdx.x; i < T::kBlock * T::kDim; i += kThreads) {
      const int row = i / T::kDim, column = i % T::kDim;
      const int64_t at = start + row;
      const bool inside = at < args.length && column < dim;
      const int64_t from = (base + at) * kv_stride + kv_head * dim + column;
      tile.k[row][column] = inside ? args.k[from] : 0.0f;
      tile.v[row][column] = inside ? args.v[from] : 0.0f;
    }
    __syncthreads();
    float score[T::kRows][T::kKeys] = {};
    for (int d = 0; d < T::kDim; ++d)
#pragma unroll
      for (int i = 0; i < T::kRows; ++i)
#pragma unroll
        for (int j = 0; j < T::kKeys; ++j)
          score[i][j] = fmaf(tile.q[y * T::kRows + i][d], tile.k[x * T::kKeys + j][d], score[i][j]);
#pragma unroll
    for (int i = 0; i < T::kRows; ++i) {
      const int64_t query = first + y * T::kRows + i;
      float top = -INFINITY;
#pragma unroll
      for (int j = 0; j < T::kKeys; ++j) {
        const int64_t key = start + x * T::kKeys + j;
        const bool seen = key <= query && query < args.length &&
                          (args.sliding_window == 0 || key > query - args.sliding_window);
        score[i][j] = seen ? score[i][j] * args.scale : -INFINITY;
        top = fmaxf(top, score[i][j]);
      }
      top = fmaxf(most[i], reduce_row(top, [](float a, float b) { return fmaxf(a, b); }));
      // A row that has seen no key yet: everything stays zero.
      const float reference = top == -INFINITY ? 0.0f : top;
      const float correction = expf(most[i] - reference);
      float part = 0;
#pragma unroll
      for (int j = 0; j < T::kKeys; ++j) {
        const float p = expf(score[i][j] - reference);
        tile.p[y * T::kRows + i][x * T::kKeys + j] = p;
        part += p;
      }
      sum[i] = sum[i] * correction + reduce_row(part, [](float a, float b) { return a + b; });
      most[i] = top;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[i][c] *= correction;
    }
    __syncwarp();  // a row of p belongs to one half of a warp
    for (int key = 0; key < T::kBlock; ++key)
#pragma unroll
      for (int i = 0; i < T::kRows; ++i) {
        const float p = tile.p[y * T::kRows + i][key];
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          out[i][c] = fmaf(p, tile.v[key][c * kSide + x], out[i][c]);
      }
  }
#pragma unroll
  for (int i = 0; i < T::kRows; ++i) {
    const int64_t query = first + y * T::kRows + i;
    if (query >= args.length) continue;
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (c * kSide + x < dim)
        args.out[(base + query) * q_stride + head * dim + c * kSide + x] = out[i][c] / sum[i];
  }
}

template <int kColumns>
void launch(const AttentionF32Args& args, CUstream_st* stream) {
  using T = Tile<kColumns>;
  check(cudaFuncSetAttribute(attend<kColumns>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             sizeof(T)),
        "shared memory of attention");
  const dim3 grid(static_cast<unsigned>((args.length + T::kQueries - 1) / T::kQueries),
                  static_cast<unsigned>(args.heads), static_cast<unsigned>(args.sequences));
  attend<kColumns><<<grid, kThreads, sizeof(T), stream>>>(args);
  check(cudaGetLastError(), "launch");
}

}  // namespace

void attention_f32(const AttentionF32Args& args, CUstream_st* stream) {
  if (args.head_dim <= 16) return launch<1>(args, stream);
  if (args.head_dim <= 32) return launch<2>(args, stream);
  if (args.head_dim <= 64) return launch<4>(args, stream);
  if (args.head_dim <= 128) return launch<8>(args, stream);
  if (args.head_dim <= kMaxHeadDimF32) return launch<16>(args, stream);
  throw Error(ErrorKind::kUnsupported,
              "calibration on the GPU: heads of {} values are more than {}; use --backend cpu",
              args.head_dim, kMaxHeadDimF32);
}

}  // namespace whit::cuda
