// Attention of many rows of a sequence: tiles of 128 rows (token-major, the query heads that share
// a key/value head side by side), one block of eight warps a tile and key/value head, sixteen rows
// a warp; chunks of keys stream through shared memory, the next one while one is computed. Two
// accumulators, one of the chunk and one of the chunks before it.
//
// Bound: tensor cores by mma.sync (about 60 % of what wgmma reaches on Hopper), and ex2 at 16 a
// clock and SM.
#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sm90/attention_sm90.h"

namespace whit::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 16;
constexpr int kStages = 2;
constexpr int kKeys = static_cast<int>(kChunk);
static_assert(kWarps * kWarpRows == kPrefillRows);

template <int D, KvStorage storage>
struct Shared {
  static constexpr bool kCoded = storage != KvStorage::kBf16;
  alignas(16) unsigned char keys[kStages][kKeys * Tile<D, storage>::kPitch];
  alignas(16) unsigned char values[kStages][kKeys * Tile<D, storage>::kPitch];
  float key_scales[kStages][kCoded ? kKeys : 1], value_scales[kStages][kCoded ? kKeys : 1];
};

template <int D, KvStorage storage>
__device__ __forceinline__ void load_chunk(const AttentionArgs& args, Shared<D, storage>& shared,
                                           int stage, const int32_t* pages, int kv_head,
                                           int first_key, int context) {
  using T = Tile<D, storage>;
  constexpr bool kCoded = T::kCoded;
  constexpr int kRowStep = kThreads / T::kUnits;
  const int unit = threadIdx.x % T::kUnits;
  const int dim = static_cast<int>(args.cache.head_dim);
  const bool stored = unit * (kCoded ? 16 : 8) < dim;
  const int64_t pitch = int64_t{dim} * (kCoded ? 1 : 2);
  const auto* keys = static_cast<const unsigned char*>(args.cache.k);
  const auto* values = static_cast<const unsigned char*>(args.cache.v);
#pragma unroll
  for (int r = threadIdx.x / T::kUnits; r < kKeys; r += kRowStep) {
    const int key = first_key + r;
    const bool valid = stored && key < context;
    const int64_t at = valid ? cache_row(args, pages, kv_head, key) * pitch + unit * 16 : 0;
    const int to = r * T::kPitch + unit * 16;
    copy_async(shared.keys[stage] + to, keys + at, valid);
    copy_async(shared.values[stage] + to, values + at, valid);
  }
  if constexpr (kCoded) {
    if (threadIdx.x < kKeys) {
      const int key = first_key + static_cast<int>(threadIdx.x);
      const int64_t row = key < context ? cache_row(args, pages, kv_head, key) : -1;
      shared.key_scales[stage][threadIdx.x] = row < 0 ? 0 : args.cache.k_scales[row];
      shared.value_scales[stage][threadIdx.x] = row < 0 ? 0 : args.cache.v_scales[row];
    }
  }
  commit_copies();
}

template <int D, KvStorage storage>
__global__ void __launch_bounds__(kThreads, 1) prefill_kernel(AttentionArgs args) {
  using T = Tile<D, storage>;
  constexpr bool kCoded = T::kCoded;
  constexpr int kTiles = D / 8;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<D, storage>*>(memory);
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  // Tiles with the longest contexts begin first: the last ones to end are short.
  const int64_t index = args.tile_count - 1 - blockIdx.x;
  const int sequence = args.tiles[2 * index], tile_row = args.tiles[2 * index + 1];
  const int kv_head = blockIdx.y;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int window = static_cast<int>(args.sliding_window);
  const int start = args.batch.query_start[sequence];
  const int tokens = args.batch.query_start[sequence + 1] - start, rows = tokens * group;
  const int context = args.batch.context_len[sequence], first_position = context - tokens;
  const int32_t* pages = args.batch.block_table + sequence * args.batch.max_blocks;

  const int last_row = min(tile_row + static_cast<int>(kPrefillRows), rows) - 1;
  const int tile_position = first_position + tile_row / group;
  const int first_chunk = window == 0 ? 0 : max(0, tile_position - window + 1) / kKeys;
  const int last_chunk = (first_position + last_row / group) / kKeys;

  // This warp's rows.
  const int warp_row = tile_row + kWarpRows * warp;
  const bool idle = warp_row >= rows;
  const int low = first_position + warp_row / group;  // positions of its first and last row
  const int high = first_position + min(warp_row + kWarpRows - 1, rows - 1) / group;
  const int row0 = warp_row + lane / 4;
  int position[2];
#pragma unroll
  for (int half = 0; half < 2; ++half)
    position[half] = row0 + 8 * half < rows ? first_position + (row0 + 8 * half) / group : -1;

  uint32_t q[T::kSteps][4];
  T::load_queries(q, dim, [&](int r) -> const __nv_bfloat16* {
    const int row = warp_row + r;
    if (row >= rows) return nullptr;
    return static_cast<const __nv_bfloat16*>(args.q) + (start + row / group) * args.q_stride +
           (kv_head * group + row % group) * dim;
  });

  float total[kTiles][4] = {}, total_length[2] = {}, total_m[2] = {kLowest, kLowest};
  const float factor = args.scale * kLog2E;

  load_chunk(args, shared, 0, pages, kv_head, first_chunk * kKeys, context);
  for (int chunk = first_chunk; chunk <= last_chunk; ++chunk) {
    const int stage = (chunk - first_chunk) % kStages;
    wait_for_copies<0>();
    __syncthreads();  // the chunk is there, and nobody reads the other stage any more
    if (chunk < last_chunk)
      load_chunk(args, shared, 1 - stage, pages, kv_head, (chunk + 1) * kKeys, context);
    const int first_key = chunk * kKeys;
    // A chunk that none of the warp's rows sees changes nothing.
    if (idle || first_key > high || (window != 0 && first_key + kKeys - 1 <= low - window))
      continue;
    const bool masked = first_key + kKeys - 1 > low || (window != 0 && first_key <= high - window);
    float s[kKeys / 8][4];
    float largest[2] = {kLowest, kLowest};
    T::template scores<kKeys / 16>(s, q, shared.keys[stage], 0);
#pragma unroll
    for (int tile = 0; tile < kKeys / 8; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 8 * tile + lane % 4 * 2 + i % 2;
        float value = s[tile][i];
        if constexpr (kCoded) value = value * shared.key_scales[stage][at];
        if (masked && !visible(first_key + at, position[i / 2], window)) value = -INFINITY;
        s[tile][i] = value;
        largest[i / 2] = fmaxf(largest[i / 2], value);
      }
    float m[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) m[half] = quad_max(largest[half]) * factor;
    float acc[kTiles][4] = {}, length[2] = {};
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      uint32_t p[4], weighted[4];
      float sums[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = s[2 * step + i / 2] + i % 2 * 2;
        const float p0 = probability(pair[0], factor, m[i % 2]);
        const float p1 = probability(pair[1], factor, m[i % 2]);
        sums[i] = p0 + p1;
        p[i] = pack_bf16(p0, p1);
        if constexpr (kCoded) {
          const int at = 16 * step + i / 2 * 8 + lane % 4 * 2;
          weighted[i] = pack_bf16(p0 * shared.value_scales[stage][at],
                                  p1 * shared.value_scales[stage][at + 1]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) length[half] += sums[half] + sums[half + 2];
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair)
        T::accumulate(acc[2 * pair], acc[2 * pair + 1], kCoded ? weighted : p, shared.values[stage],
                      step, pair);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float both = fmaxf(total_m[half], m[half]);
      const Merge factors = merge_factors(total_m[half], m[half], both);
      total_m[half] = both;
      total_length[half] = merge(total_length[half], quad_sum(length[half]), factors);
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i)
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          total[tile][i] = merge(total[tile][i], acc[tile][i], factors);
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + 8 * half;
    if (row >= rows) continue;
    auto* out = static_cast<__nv_bfloat16*>(args.out) + (start + row / group) * args.out_stride +
                (kv_head * group + row % group) * dim;
    const float sum = total_length[half];
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = T::dimension(tile, i);
        if (d < dim) out[d] = __float2bfloat16_rn(total[tile][2 * half + i] * inverse);
      }
  }
}

template <int D, KvStorage storage>
void launch_prefill(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kShared = sizeof(Shared<D, storage>);
  check(cudaFuncSetAttribute(prefill_kernel<D, storage>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
        "asking for shared memory");
  launch_dependent(
      prefill_kernel<D, storage>,
      dim3(static_cast<unsigned>(args.tile_count), static_cast<unsigned>(args.cache.kv_heads)),
      dim3(kThreads), kShared, stream, args);
}

template <KvStorage storage>
void launch_prefill(const AttentionArgs& args, cudaStream_t stream) {
  if (args.cache.head_dim <= 32)
    launch_prefill<32, storage>(args, stream);
  else if (args.cache.head_dim <= 64)
    launch_prefill<64, storage>(args, stream);
  else
    launch_prefill<128, storage>(args, stream);
}

}  // namespace

void attention_prefill(const AttentionArgs& args, cudaStream_t stream) {
  with_storage(args.cache.storage, [&](auto storage) { launch_prefill<storage()>(args, stream); });
}

void attention(const AttentionArgs& args, cudaStream_t stream) {
  static const bool hopper = kernels_wait();
  if (args.tile_count > 0 && !(hopper && attention_prefill_sm90(args, stream)))
    attention_prefill(args, stream);
  if (args.max_chunks > 0)
    hopper ? attention_decode_sm90(args, stream) : attention_decode(args, stream);
}

}  // namespace whit::cuda
