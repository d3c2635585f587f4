// Attention of sequences with few rows in this step: one block of four warps for each chunk of 128
// keys of a sequence and key/value head, for all query heads that share it (16 rows of one mma).
//
// Every byte of a chunk is requested at once (64 KB of bf16 at Dh = 128; three blocks on an SM keep
// 192 KB in flight, far above the 40–56 KB that saturate Hopper's memory); arithmetic is idle.
// Warps share the keys for q·k and the output dimensions for p·v. The
// block that finishes last for a sequence and head merges its chunks, in ascending order.
//
// Bound: the bytes of keys and values; at batch 1 about 4 µs of latency (page table, keys, merge).
#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kRows = static_cast<int>(kDecodeRows);
constexpr int kKeys = static_cast<int>(kChunk);
constexpr int kProbabilityPitch = 2 * kKeys + 16;

template <int D, KvStorage storage>
struct Shared {
  static constexpr bool kCoded = storage != KvStorage::kBf16;
  // The probabilities of the chunk take the keys' place once the scores are there.
  static constexpr int kKeyBytes = kKeys * Tile<D, storage>::kPitch;
  static constexpr int kProbabilityBytes = kRows * kProbabilityPitch;
  alignas(16) unsigned char keys[kKeyBytes > kProbabilityBytes ? kKeyBytes : kProbabilityBytes];
  alignas(16) unsigned char values[kKeys * Tile<D, storage>::kPitch];
  int64_t rows[kKeys];
  float key_scales[kCoded ? kKeys : 1], value_scales[kCoded ? kKeys : 1];
  float maxima[kWarps][kRows];
  float lengths[kKeys / 16][kRows][4];  // of 16 keys, by a quad's column
  int last;
};

// A warp for each row, a lane for D / 32 neighbouring dimensions. Sixteen chunks' partial sums are
// requested before the first is used: one wait for L2 instead of one a chunk.
template <int D>
__device__ void merge_chunks(const AttentionArgs& args, int sequence, int kv_head, int chunks,
                             int rows) {
  constexpr int kOwn = D / 32;
  constexpr int kAhead = 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int64_t first = (int64_t{sequence} * args.cache.kv_heads + kv_head) * args.max_chunks;
  const float* acc = args.partials + first * kRows * D;
  // [chunk][row]: maximum and length
  const auto* sums =
      reinterpret_cast<const float2*>(args.partials + args.batch.b * args.cache.kv_heads *
                                                          args.max_chunks * kRows * D) +
      first * kRows;
  for (int row = warp; row < rows; row += kWarps) {
    float total[kOwn] = {}, length = 0, carry = kLowest;
    for (int begin = 0; begin < chunks; begin += 32) {
      const int count = min(32, chunks - begin);
      float2 own = {kLowest, 0};
      if (lane < count) own = __ldcg(sums + int64_t{begin + lane} * kRows + row);
      const auto [before, running] = running_maximum(own.x, carry);
      const Merge factors = merge_factors(before, own.x, running);
      for (int ahead = 0; ahead < count; ahead += kAhead) {
        float values[kAhead][kOwn];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const float* from = acc + (int64_t{begin + ahead + j} * kRows + row) * D + lane * kOwn;
#pragma unroll
          for (int i = 0; i < kOwn; ++i) values[j][i] = 0;
          if (ahead + j < count) {
            if constexpr (kOwn == 4) {
              const float4 four = __ldcg(reinterpret_cast<const float4*>(from));
              values[j][0] = four.x, values[j][1] = four.y;
              values[j][2] = four.z, values[j][3] = four.w;
            } else if constexpr (kOwn == 2) {
              const float2 two = __ldcg(reinterpret_cast<const float2*>(from));
              values[j][0] = two.x, values[j][1] = two.y;
            } else {
              values[j][0] = __ldcg(from);
            }
          }
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const int c = (ahead + j) % 32;
          const Merge at = {__shfl_sync(0xffffffffu, factors.before, c),
                            __shfl_sync(0xffffffffu, factors.chunk, c)};
          const float chunk_length = __shfl_sync(0xffffffffu, own.y, c);
          if (ahead + j < count) {
            length = merge(length, chunk_length, at);
#pragma unroll
            for (int i = 0; i < kOwn; ++i) total[i] = merge(total[i], values[j][i], at);
          }
        }
      }
    }
    const float inverse = length > 0 ? 1.0f / length : 0.0f;
    const int64_t token = args.batch.query_start[sequence] + row / group;
    const int head = kv_head * group + row % group;
    auto* out =
        static_cast<__nv_bfloat16*>(args.out) + token * args.out_stride + head * dim + lane * kOwn;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (lane * kOwn + i < dim) out[i] = __float2bfloat16_rn(total[i] * inverse);
  }
}

template <int D, KvStorage storage>
__global__ void __launch_bounds__(kThreads) decode_kernel(AttentionArgs args) {
  using T = Tile<D, storage>;
  constexpr bool kCoded = T::kCoded;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<D, storage>*>(memory);
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int sequence = blockIdx.z, kv_head = blockIdx.y;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int window = static_cast<int>(args.sliding_window);
  const int start = args.batch.query_start[sequence];
  const int tokens = args.batch.query_start[sequence + 1] - start, rows = tokens * group;
  const int context = args.batch.context_len[sequence], first_position = context - tokens;
  if (tokens == 0 || rows > kRows) return;
  const int first_chunk = window == 0 ? 0 : max(0, first_position - window + 1) / kKeys;
  const int chunks = (context - 1) / kKeys - first_chunk + 1;
  if (static_cast<int>(blockIdx.x) >= chunks) return;
  const int first_key = (first_chunk + static_cast<int>(blockIdx.x)) * kKeys;
  const int32_t* pages = args.batch.block_table + sequence * args.batch.max_blocks;

  // Keys past the context are zeros: what lies there may not be numbers.
  {
    const int key = first_key + static_cast<int>(threadIdx.x);
    const int64_t row = key < context ? cache_row(args, pages, kv_head, key) : -1;
    shared.rows[threadIdx.x] = row;
    if constexpr (kCoded) {
      shared.key_scales[threadIdx.x] = row < 0 ? 0 : args.cache.k_scales[row];
      shared.value_scales[threadIdx.x] = row < 0 ? 0 : args.cache.v_scales[row];
    }
  }
  __syncthreads();
  const auto copy = [&](unsigned char* to, const void* from) {
    constexpr int kRowStep = kThreads / T::kUnits;
    constexpr int kUnitValues = kCoded ? 16 : 8;
    const int unit = threadIdx.x % T::kUnits;
    const bool stored = unit * kUnitValues < dim;
    const int64_t pitch = int64_t{dim} * (kCoded ? 1 : 2);
#pragma unroll 8
    for (int r = threadIdx.x / T::kUnits; r < kKeys; r += kRowStep) {
      const int64_t row = shared.rows[r];
      const bool valid = stored && row >= 0;
      copy_async(to + r * T::kPitch + unit * 16,
                 static_cast<const unsigned char*>(from) + (valid ? row * pitch + unit * 16 : 0),
                 valid);
    }
    commit_copies();
  };
  copy(shared.keys, args.cache.k);
  copy(shared.values, args.cache.v);

  uint32_t q[T::kSteps][4];
  T::load_queries(q, dim, [&](int row) -> const __nv_bfloat16* {
    if (row >= rows) return nullptr;
    return static_cast<const __nv_bfloat16*>(args.q) + (start + row / group) * args.q_stride +
           (kv_head * group + row % group) * dim;
  });
  wait_for_copies<1>();
  __syncthreads();

  // Warp w: keys 32·w … 32·w + 31.
  float s[4][4];
  const int row0 = lane / 4;
  const float factor = args.scale * kLog2E;
  T::template scores<2>(s, q, shared.keys + 32 * warp * T::kPitch, 0);
  float largest[2] = {kLowest, kLowest};
#pragma unroll
  for (int tile = 0; tile < 4; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = 32 * warp + 8 * tile + lane % 4 * 2 + i % 2;
      const int row = row0 + i / 2 * 8;
      float& value = s[tile][i];
      if constexpr (kCoded) value = value * shared.key_scales[at];
      if (row >= rows || !visible(first_key + at, first_position + row / group, window))
        value = -INFINITY;
      largest[i / 2] = fmaxf(largest[i / 2], value);
    }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    largest[half] = quad_max(largest[half]);
    if (lane % 4 == 0) shared.maxima[warp][row0 + 8 * half] = largest[half];
  }
  __syncthreads();
  float m[2];
  unsigned char* probabilities = shared.keys;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + 8 * half;
    float most = kLowest;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, shared.maxima[w][row]);
    m[half] = most * factor;
#pragma unroll
    for (int sixteen = 0; sixteen < 2; ++sixteen) {
      float sums[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int tile = 2 * sixteen + i;
        const int at = 32 * warp + 8 * tile + lane % 4 * 2;
        float p0 = probability(s[tile][2 * half], factor, m[half]);
        float p1 = probability(s[tile][2 * half + 1], factor, m[half]);
        sums[i] = p0 + p1;
        if constexpr (kCoded) p0 *= shared.value_scales[at], p1 *= shared.value_scales[at + 1];
        *reinterpret_cast<uint32_t*>(probabilities + row * kProbabilityPitch + 2 * at) =
            pack_bf16(p0, p1);
      }
      shared.lengths[2 * warp + sixteen][row][lane % 4] = sums[0] + sums[1];
    }
  }
  wait_for_copies<0>();
  __syncthreads();

  // Warp w: output tiles w · kTiles …
  constexpr int kTiles = D / 8 / kWarps;
  constexpr int kPairs = (kTiles + 1) / 2;
  float acc[2 * kPairs][4] = {}, length[2] = {};
  const uint32_t matrix =
      shared_address(probabilities) + lane % 16 * kProbabilityPitch + lane / 16 * 16;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
    uint32_t p[4];
    load_matrices(p, matrix + step * 32);
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair)
      T::accumulate(acc[2 * pair], acc[2 * pair + 1], p, shared.values, step,
                    warp * kTiles / 2 + pair);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      length[half] += shared.lengths[step][row0 + 8 * half][lane % 4];
    length[half] = quad_sum(length[half]);
  }

  const int64_t slot =
      (int64_t{sequence} * args.cache.kv_heads + kv_head) * args.max_chunks + blockIdx.x;
  float* out = args.partials + slot * kRows * D;
  // A warp of one tile has computed its neighbour's too.
  const int first_tile = kTiles == 1 ? warp / 2 * 2 : warp * kTiles;
#pragma unroll
  for (int tile = 0; tile < 2 * kPairs; ++tile) {
    if (kTiles == 1 && tile != warp % 2) continue;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = row0 + i / 2 * 8;
      if (row < rows) __stcg(out + row * D + T::dimension(first_tile + tile, i), acc[tile][i]);
    }
  }
  float* sums = args.partials + args.batch.b * args.cache.kv_heads * args.max_chunks * kRows * D +
                slot * kRows * 2;
  if (warp == 0 && lane % 4 == 0)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (row0 + 8 * half < rows) {
        __stcg(reinterpret_cast<float2*>(sums) + row0 + 8 * half,
               make_float2(m[half], length[half]));
      }
  __threadfence();
  __syncthreads();
  int32_t* counter = args.counters + sequence * args.cache.kv_heads + kv_head;
  if (threadIdx.x == 0) shared.last = atomicAdd(counter, 1) == chunks - 1;
  __syncthreads();
  if (!shared.last) return;
  __threadfence();
  if (threadIdx.x == 0) *counter = 0;
  merge_chunks<D>(args, sequence, kv_head, chunks, rows);
}

template <int D, KvStorage storage>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kShared = sizeof(Shared<D, storage>);
  check(cudaFuncSetAttribute(decode_kernel<D, storage>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kShared),
        "asking for shared memory");
  launch_dependent(
      decode_kernel<D, storage>,
      dim3(static_cast<unsigned>(args.max_chunks), static_cast<unsigned>(args.cache.kv_heads),
           static_cast<unsigned>(args.batch.b)),
      dim3(kThreads), kShared, stream, args);
}

template <KvStorage storage>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  if (args.cache.head_dim <= 32)
    launch_decode<32, storage>(args, stream);
  else if (args.cache.head_dim <= 64)
    launch_decode<64, storage>(args, stream);
  else
    launch_decode<128, storage>(args, stream);
}

}  // namespace

void attention_decode(const AttentionArgs& args, cudaStream_t stream) {
  with_storage(args.cache.storage, [&](auto storage) { launch_decode<storage()>(args, stream); });
}

}  // namespace whit::cuda
