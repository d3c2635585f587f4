// Attention of many rows of a sequence: tiles of 128 rows (token-major, the query heads that share
// a key/value head side by side), one block of eight warps a tile and key/value head, sixteen rows
// a warp; blocks of 64 keys stream through shared memory, the next one while one is computed.
//
// Sums are those of attention_decode.cu: two accumulators, one of the chunk of 128 keys and one of
// the chunks before it.
//
// Bound: tensor cores by mma.sync (about 60 % of what wgmma reaches on Hopper), and ex2 at 16 a
// clock and SM.
#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"

namespace whit::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kWarpRows = 16;
constexpr int kStages = 2;
static_assert(kWarps * kWarpRows == kPrefillRows);
static_assert(kChunk == 2 * kBlockKeys);

template <int D, bool kInt8>
struct Shared {
  alignas(16) unsigned char keys[kStages][kBlockKeys * Tile<D, kInt8>::kPitch];
  alignas(16) unsigned char values[kStages][kBlockKeys * Tile<D, kInt8>::kPitch];
  float key_scales[kStages][kInt8 ? kBlockKeys : 1], value_scales[kStages][kInt8 ? kBlockKeys : 1];
};

template <int D, bool kInt8>
__device__ __forceinline__ void load_block(const AttentionArgs& args, Shared<D, kInt8>& shared,
                                           int stage, const int32_t* pages, int kv_head,
                                           int first_key, int context) {
  using T = Tile<D, kInt8>;
  constexpr int kRowStep = kThreads / T::kUnits;
  const int unit = threadIdx.x % T::kUnits;
  const int dim = static_cast<int>(args.cache.head_dim);
  const bool stored = unit * (kInt8 ? 16 : 8) < dim;
  const int64_t pitch = int64_t{dim} * (kInt8 ? 1 : 2);
  const auto* keys = static_cast<const unsigned char*>(args.cache.k);
  const auto* values = static_cast<const unsigned char*>(args.cache.v);
#pragma unroll
  for (int r = threadIdx.x / T::kUnits; r < kBlockKeys; r += kRowStep) {
    const int key = first_key + r;
    const bool valid = stored && key < context;
    const int64_t at = valid ? cache_row(args, pages, kv_head, key) * pitch + unit * 16 : 0;
    const int to = r * T::kPitch + unit * 16;
    copy_async(shared.keys[stage] + to, keys + at, valid);
    copy_async(shared.values[stage] + to, values + at, valid);
  }
  if constexpr (kInt8) {
    if (threadIdx.x < kBlockKeys) {
      const int key = first_key + static_cast<int>(threadIdx.x);
      const int64_t row = key < context ? cache_row(args, pages, kv_head, key) : -1;
      shared.key_scales[stage][threadIdx.x] = row < 0 ? 0 : args.cache.k_scales[row];
      shared.value_scales[stage][threadIdx.x] = row < 0 ? 0 : args.cache.v_scales[row];
    }
  }
  commit_copies();
}

template <int D, bool kInt8>
__global__ void __launch_bounds__(kThreads, 1) prefill_kernel(AttentionArgs args) {
  using T = Tile<D, kInt8>;
  constexpr int kTiles = D / 8;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& shared = *reinterpret_cast<Shared<D, kInt8>*>(memory);
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
  const int first_chunk =
      window == 0 ? 0 : max(0, tile_position - window + 1) / static_cast<int>(kChunk);
  const int first_block = 2 * first_chunk;
  const int last_block = (first_position + last_row / group) / kBlockKeys;

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

  float acc[kTiles][4], length[4], total[kTiles][4], total_length[4];
  float m[2], total_m[2] = {kLowest, kLowest};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    total_length[i] = 0;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) total[tile][i] = 0;
  }
  const float factor = args.scale * kLog2E;
  constexpr uint32_t kOnes = 0x3f803f80u;

  load_block(args, shared, 0, pages, kv_head, first_block * kBlockKeys, context);
  for (int block = first_block; block <= last_block; ++block) {
    const int stage = (block - first_block) % kStages;
    wait_for_copies<0>();
    __syncthreads();  // the block is there, and nobody reads the other stage any more
    if (block < last_block)
      load_block(args, shared, 1 - stage, pages, kv_head, (block + 1) * kBlockKeys, context);
    const int first_key = block * kBlockKeys;
    const bool begins_chunk = block % 2 == 0;
    if (begins_chunk) {
      m[0] = m[1] = kLowest;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        length[i] = 0;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) acc[tile][i] = 0;
      }
    }
    // A block that none of the warp's rows sees changes nothing.
    if (!idle && first_key <= high && (window == 0 || first_key + kBlockKeys - 1 > low - window)) {
      const bool masked =
          first_key + kBlockKeys - 1 > low || (window != 0 && first_key <= high - window);
      float s[kBlockKeys / 8][4];
      float largest[2] = {kLowest, kLowest};
      T::template scores<kBlockKeys / 16>(s, q, shared.keys[stage], 0);
#pragma unroll
      for (int tile = 0; tile < kBlockKeys / 8; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = 8 * tile + lane % 4 * 2 + i % 2;
          float value = s[tile][i];
          if constexpr (kInt8) value = value * shared.key_scales[stage][at];
          value = value * factor;
          if (masked && !visible(first_key + at, position[i / 2], window)) value = -INFINITY;
          s[tile][i] = value;
          largest[i / 2] = fmaxf(largest[i / 2], value);
        }
      float alpha[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], 1));
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], 2));
        const float next = fmaxf(m[half], largest[half]);
        alpha[half] = exp2_fast(m[half] - next);
        m[half] = next;
      }
      if (!begins_chunk) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          length[i] *= alpha[i / 2];
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) acc[tile][i] *= alpha[i / 2];
        }
      }
#pragma unroll
      for (int step = 0; step < kBlockKeys / 16; ++step) {
        uint32_t p[4], weighted[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = s[2 * step + i / 2] + i % 2 * 2;
          const float p0 = exp2_fast(pair[0] - m[i % 2]), p1 = exp2_fast(pair[1] - m[i % 2]);
          p[i] = pack_bf16(p0, p1);
          if constexpr (kInt8) {
            const int at = 16 * step + i / 2 * 8 + lane % 4 * 2;
            weighted[i] = pack_bf16(p0 * shared.value_scales[stage][at],
                                    p1 * shared.value_scales[stage][at + 1]);
          }
        }
        mma_bf16(length, p, kOnes, kOnes);
#pragma unroll
        for (int pair = 0; pair < kTiles / 2; ++pair)
          T::accumulate(acc[2 * pair], acc[2 * pair + 1], kInt8 ? weighted : p,
                        shared.values[stage], step, pair);
      }
    }
    if (begins_chunk && block < last_block) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float both = fmaxf(total_m[half], m[half]);
      const Merge factors = merge_factors(total_m[half], m[half], both);
      total_m[half] = both;
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        total_length[i] = merge(total_length[i], length[i], factors);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
          total[tile][i] = merge(total[tile][i], acc[tile][i], factors);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + 8 * half;
    if (row >= rows) continue;
    auto* out = static_cast<__nv_bfloat16*>(args.out) + (start + row / group) * args.out_stride +
                (kv_head * group + row % group) * dim;
    const float sum = total_length[2 * half];
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

template <int D, bool kInt8>
void launch_prefill(const AttentionArgs& args, cudaStream_t stream) {
  constexpr int kShared = sizeof(Shared<D, kInt8>);
  check(cudaFuncSetAttribute(prefill_kernel<D, kInt8>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kShared),
        "asking for shared memory");
  launch_dependent(
      prefill_kernel<D, kInt8>,
      dim3(static_cast<unsigned>(args.tile_count), static_cast<unsigned>(args.cache.kv_heads)),
      dim3(kThreads), kShared, stream, args);
}

}  // namespace

void attention_prefill(const AttentionArgs& args, cudaStream_t stream) {
  const bool int8 = args.cache.k_scales != nullptr;
  if (args.cache.head_dim <= 32)
    int8 ? launch_prefill<32, true>(args, stream) : launch_prefill<32, false>(args, stream);
  else if (args.cache.head_dim <= 64)
    int8 ? launch_prefill<64, true>(args, stream) : launch_prefill<64, false>(args, stream);
  else
    int8 ? launch_prefill<128, true>(args, stream) : launch_prefill<128, false>(args, stream);
}

void attention(const AttentionArgs& args, cudaStream_t stream) {
  if (args.tile_count > 0) attention_prefill(args, stream);
  if (args.max_chunks > 0) attention_decode(args, stream);
}

}  // namespace whit::cuda
