// What turns tokens into rows and rows into tokens: embedding, RoPE with the write to the cache,
// argmax.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cfloat>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_ops_table.h"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

__device__ __forceinline__ float table_value(const Table& table, int64_t row, int64_t i) {
  const int64_t at = row * table.k + i;
  switch (table.format) {
    case TableFormat::kF32:
      return static_cast<const float*>(table.data)[at];
    case TableFormat::kF16:
      return __half2float(static_cast<const __half*>(table.data)[at]);
    case TableFormat::kBF16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(table.data)[at]);
    case TableFormat::kInt8Channel:
      return static_cast<float>(static_cast<const int8_t*>(table.data)[at]) *
             static_cast<const float*>(table.scales)[row];
    case TableFormat::kFp8Channel:
      return e4m3_to_f32(static_cast<const uint8_t*>(table.data)[at]) *
             static_cast<const float*>(table.scales)[row];
    default: {
      const int64_t groups = (table.k + table.group_size - 1) / table.group_size;
      const int64_t group = i / table.group_size;
      const auto nibble = [](const uint8_t* row_begin, int64_t index) {
        return row_begin[index / 2] >> (index % 2 * 4) & 15;
      };
      const int code =
          nibble(static_cast<const uint8_t*>(table.data) + row * ((table.k + 1) / 2), i);
      const int zero =
          table.zeros == nullptr ? 8 : nibble(table.zeros + row * ((groups + 1) / 2), group);
      return static_cast<float>(code - zero) *
             __half2float(static_cast<const __half*>(table.scales)[row * groups + group]);
    }
  }
}

__global__ void embedding_kernel(EmbeddingArgs args) {
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int64_t t = blockIdx.x;
  const int64_t row = args.ids[t];
  for (int64_t i = threadIdx.x; i < args.table.k; i += blockDim.x)
    args.out[t * args.table.k + i] = table_value(args.table, row, i);
}

// One warp a token and head: of q first, then k, then v. Lane l has the dimensions d ≡ l (mod 32)
// of the first half and of the second, which rotate together.
constexpr int kRopeWarps = 4;
constexpr int kMaxHalf = kMaxHeadDim / 2 / 32;

__global__ void __launch_bounds__(32 * kRopeWarps) rope_kv_write_kernel(RopeKvArgs args) {
  let_next_kernel_launch();
  const int heads = static_cast<int>(args.heads), kv_heads = static_cast<int>(args.cache.kv_heads);
  const int64_t item = int64_t{blockIdx.x} * kRopeWarps + threadIdx.x / 32;
  const int all = heads + 2 * kv_heads;
  const int64_t t = item / all;
  if (t >= args.batch.t) return;
  const int part = static_cast<int>(item % all), lane = threadIdx.x % 32;
  const int dim = static_cast<int>(args.cache.head_dim), half = dim / 2;
  // Metadata was written before the step's first kernel, the tables long ago: both come while the
  // kernel ahead ends.
  const int32_t slot = args.batch.slots[t];
  const bool is_q = part < heads, is_k = !is_q && part < heads + kv_heads;
  if (slot < 0) return;
  const int head = is_q ? part : is_k ? part - heads : part - heads - kv_heads;
  const auto* source = is_q   ? static_cast<const __nv_bfloat16*>(args.q) + t * args.q_stride
                       : is_k ? static_cast<const __nv_bfloat16*>(args.k) + t * args.k_stride
                              : static_cast<const __nv_bfloat16*>(args.v) + t * args.v_stride;
  source += head * dim;
  const int64_t angle = int64_t{args.batch.positions[t]} * half;
  float cos[kMaxHalf], sin[kMaxHalf];
#pragma unroll
  for (int j = 0; j < kMaxHalf; ++j) {
    const int d = lane + 32 * j;
    cos[j] = 1, sin[j] = 0;
    if (d >= half || !(is_q || is_k)) continue;
    cos[j] = args.cos[angle + d], sin[j] = args.sin[angle + d];
  }
  const int64_t page = slot / args.cache.page_tokens, offset = slot % args.cache.page_tokens;
  wait_for_previous_kernel();
  float a[kMaxHalf], b[kMaxHalf];
  float magnitude = 0;
#pragma unroll
  for (int j = 0; j < kMaxHalf; ++j) {
    const int d = lane + 32 * j;
    if (d >= half) continue;
    a[j] = __bfloat162float(source[d]);
    b[j] = __bfloat162float(source[d + half]);
    if (is_q || is_k) {
      const float x = a[j], y = b[j];
      a[j] = x * cos[j] - y * sin[j];
      b[j] = y * cos[j] + x * sin[j];
    }
    magnitude = fmaxf(magnitude, fmaxf(fabsf(a[j]), fabsf(b[j])));
  }
  if (is_q) {
    auto* q = static_cast<__nv_bfloat16*>(args.q) + t * args.q_stride + head * dim;
#pragma unroll
    for (int j = 0; j < kMaxHalf; ++j) {
      const int d = lane + 32 * j;
      if (d >= half) continue;
      q[d] = __float2bfloat16_rn(a[j]);
      q[d + half] = __float2bfloat16_rn(b[j]);
    }
    return;
  }
  const DeviceKv& cache = args.cache;
  const int64_t token = (page * kv_heads + head) * cache.page_tokens + offset;
  void* destination = is_k ? cache.k : cache.v;
  if (cache.storage == KvStorage::kBf16) {
    auto* out = static_cast<__nv_bfloat16*>(destination) + token * dim;
#pragma unroll
    for (int j = 0; j < kMaxHalf; ++j) {
      const int d = lane + 32 * j;
      if (d >= half) continue;
      out[d] = __float2bfloat16_rn(a[j]);
      out[d + half] = __float2bfloat16_rn(b[j]);
    }
    return;
  }
#pragma unroll
  for (int offset_lanes = 16; offset_lanes > 0; offset_lanes /= 2)
    magnitude = fmaxf(magnitude, __shfl_xor_sync(0xffffffffu, magnitude, offset_lanes));
  const bool int8 = cache.storage == KvStorage::kInt8;
  const float scale = magnitude / (int8 ? 127.0f : 448.0f);
  const float inverse = scale >= FLT_MIN && scale <= FLT_MAX ? 1.0f / scale : 0.0f;
  auto* out = static_cast<uint8_t*>(destination) + token * dim;
  const auto code = [&](float x) {
    if (!int8) return __nv_cvt_float_to_fp8(x * inverse, __NV_SATFINITE, __NV_E4M3);
    return static_cast<uint8_t>(
        static_cast<int8_t>(fminf(fmaxf(rintf(x * inverse), -127.0f), 127.0f)));
  };
#pragma unroll
  for (int j = 0; j < kMaxHalf; ++j) {
    const int d = lane + 32 * j;
    if (d >= half) continue;
    out[d] = code(a[j]);
    out[d + half] = code(b[j]);
  }
  if (lane == 0) (is_k ? cache.k_scales : cache.v_scales)[token] = scale < FLT_MIN ? 0.0f : scale;
}

constexpr int kArgmaxThreads = 256;
constexpr int64_t kArgmaxPart = 2048;

// Floats as integers that compare alike; NaN below everything.
__device__ __forceinline__ uint32_t ordered(float x) {
  if (x != x) return 0;
  const uint32_t bits = __float_as_uint(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__global__ void __launch_bounds__(kArgmaxThreads) argmax_kernel(ArgmaxArgs args) {
  __shared__ unsigned long long best_of_warp[kArgmaxThreads / 32];
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.y;
  const int64_t begin = blockIdx.x * kArgmaxPart;
  const int64_t end = min(begin + kArgmaxPart, args.vocab);
  const float* logits = args.logits + row * args.vocab;
  unsigned long long best = 0;
#pragma unroll 8
  for (int64_t i = begin + threadIdx.x; i < end; i += kArgmaxThreads) {
    const unsigned long long key =
        static_cast<unsigned long long>(ordered(logits[i])) << 32 | ~static_cast<uint32_t>(i);
    best = max(best, key);
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    best = max(best, __shfl_xor_sync(0xffffffffu, best, offset));
  if (threadIdx.x % 32 == 0) best_of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (const unsigned long long other : best_of_warp) best = max(best, other);
  // The largest key is the same in whatever order blocks come. Who comes last tells it.
  auto* best_of_row = reinterpret_cast<unsigned long long*>(args.best) + row;
  atomicMax(best_of_row, best);
  __threadfence();
  if (atomicInc(args.arrived + row, gridDim.x - 1) == gridDim.x - 1)
    args.keys[row] = atomicExch(best_of_row, 0);
}

}  // namespace

void embedding(const EmbeddingArgs& args, cudaStream_t stream) {
  if (args.t == 0) return;
  launch_dependent(embedding_kernel, dim3(static_cast<unsigned>(args.t)), dim3(256), 0, stream,
                   args);
}

void rope_kv_write(const RopeKvArgs& args, cudaStream_t stream) {
  if (args.batch.t == 0) return;
  const int64_t items = args.batch.t * (args.heads + 2 * args.cache.kv_heads);
  launch_dependent(rope_kv_write_kernel,
                   dim3(static_cast<unsigned>((items + kRopeWarps - 1) / kRopeWarps)),
                   dim3(32 * kRopeWarps), 0, stream, args);
}

void argmax(const ArgmaxArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  launch_dependent(argmax_kernel,
                   dim3(static_cast<unsigned>((args.vocab + kArgmaxPart - 1) / kArgmaxPart),
                        static_cast<unsigned>(args.rows)),
                   dim3(kArgmaxThreads), 0, stream, args);
}

const SmallOps& small_ops() {
  static constexpr SmallOps kOps = {
      .embedding = embedding,
      .rms_norm = rms_norm,
      .silu_mul = silu_mul,
      .quantize = quantize,
      .rope_kv_write = rope_kv_write,
      .attention = attention,
      .argmax = argmax,
      .sample = sample,
  };
  return kOps;
}

}  // namespace whit::cuda
