// Attention of many rows of a sequence, on Hopper: tiles of 128 rows (token-major, the query heads
// that share a key/value head side by side), two warpgroups of 64 rows each. Blocks are persistent,
// one an SM: chunks of keys and values stream through shared memory by tensor maps, and tile
// follows tile as chunk follows chunk: the first scores of the next one are made with the last
// products of this.
//
// With the sums of attention.cuh: a warpgroup asks for p·v of one chunk, then for q·k of the next,
// in this order: a warp waits at products whose operand its registers are, not at those from shared
// memory, beside which it merges what p·v has made. While it makes scores into probabilities it is
// the other's turn at the tensor cores. A third one's registers are theirs (sums of the chunks
// before 64, of the chunk 64, scores 64, probabilities 32). Its warps copy: keys, values, and each
// warpgroup's queries.
//
// Bound: tensor cores (wgmma, bf16).
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sm90/attention_map.cuh"
#include "kernels/cuda/sm90/attention_sm90.h"
#include "kernels/cuda/sm90/ptx_sm90.cuh"
#include "kernels/cuda/sm90/shared_memory.h"

namespace whit::cuda {
namespace {

constexpr int kGroups = 2;
constexpr int kGroupRows = 64;
constexpr int kThreads = 128 * (kGroups + 1);
constexpr int kTurnThreads = 128 * kGroups;
constexpr int kKeys = static_cast<int>(kChunk);
constexpr int kStages = 3;
constexpr int kRunBytes = kKeys * 128;           // of 64 dimensions of a chunk
constexpr int kScaleStageBytes = 2 * kKeys * 4;  // a chunk's scales of keys, then of values
static_assert(kGroups * kGroupRows == kPrefillRows);

template <int D, bool kWidened>
struct Shape {
  static constexpr int kRuns = D / 64;
  // Scales take the place of a stage of values.
  static constexpr int kValueStages = kWidened ? kStages - 1 : kStages;
  static constexpr int kScaleBytes = kWidened ? kStages * kScaleStageBytes : 0;
  static constexpr int kQueryBytes = kGroupRows * 2 * D;  // of a warpgroup
  static constexpr int kStageBytes = kRuns * kRunBytes;
  static constexpr int kSharedBytes =
      1024 + kGroups * kQueryBytes + (kStages + kValueStages) * kStageBytes + kScaleBytes + 512;
};
static_assert(Shape<128, false>::kSharedBytes <= kMostSharedBytes);

// A tile of one key/value head.
struct Item {
  int sequence, kv_head, row;  // row: its first among the sequence's
  int start, rows;             // the sequence's first token in the step, and its rows
  int context, first_position;
  int first_chunk, chunks;

  Item() = default;
  __device__ __forceinline__ Item(const AttentionArgs& args, int index) {
    // Tiles with the longest contexts begin first: the last ones to end are short.
    const int kv_heads = static_cast<int>(args.cache.kv_heads);
    const int64_t tile = args.tile_count - 1 - index / kv_heads;
    const int group = static_cast<int>(args.heads) / kv_heads;
    const int window = static_cast<int>(args.sliding_window);
    kv_head = index % kv_heads;
    sequence = args.tiles[2 * tile];
    row = args.tiles[2 * tile + 1];
    start = args.batch.query_start[sequence];
    const int tokens = args.batch.query_start[sequence + 1] - start;
    rows = tokens * group;
    context = args.batch.context_len[sequence];
    first_position = context - tokens;
    const int last_row = min(row + static_cast<int>(kPrefillRows), rows) - 1;
    first_chunk = window == 0 ? 0 : max(0, first_position + row / group - window + 1) / kKeys;
    chunks = (first_position + last_row / group) / kKeys - first_chunk + 1;
  }
};

// A block's n-th item: forth and back through the blocks, from the longest to the shortest.
__device__ __forceinline__ int item_of(int n) {
  const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
  return n * blocks + (n % 2 == 0 ? block : blocks - 1 - block);
}

__device__ __forceinline__ float* widened_scales(const AttentionArgs& args) {
  return reinterpret_cast<float*>(static_cast<__nv_bfloat16*>(args.widened) +
                                  2 * args.widened_chunks * args.cache.kv_heads * kKeys *
                                      args.cache.head_dim);
}

// Keeps what is computed from values after a wait, or before one.
template <int kCount>
__device__ __forceinline__ void settle(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

template <int D, bool kWidened>
__global__ void __launch_bounds__(kThreads, 1)
    prefill_kernel(const __grid_constant__ AttentionArgs args,
                   const __grid_constant__ CUtensorMap key_map,
                   const __grid_constant__ CUtensorMap value_map, int box_tokens) {
  using S = Shape<D, kWidened>;
  constexpr int kTiles = D / 8;
  extern __shared__ unsigned char unaligned[];
  unsigned char* const memory = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  const uint32_t queries = shared_address(memory);
  const uint32_t rings = queries + kGroups * S::kQueryBytes;
  const uint32_t scale_ring = rings + (kStages + S::kValueStages) * S::kStageBytes;
  const uint32_t barriers = scale_ring + S::kScaleBytes;
  __shared__ Item item_slots[kGroups][2];
  // Of keys (which = 0) and values.
  const auto full = [&](int which, int stage) { return barriers + (which * kStages + stage) * 16; };
  const auto empty = [&](int which, int stage) { return full(which, stage) + 8; };
  const auto stage_of = [&](int which, int stage) {
    return rings + (which * kStages + stage) * S::kStageBytes;
  };
  // Of a warpgroup's queries.
  const auto queries_full = [&](int of) { return barriers + (2 * kStages + of) * 16; };
  const auto queries_empty = [&](int of) { return queries_full(of) + 8; };
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2 * kStages + kGroups; ++i) {
      barrier_init(barriers + 16 * i, 1);
      barrier_init(barriers + 16 * i + 8, i < 2 * kStages ? 4 * kGroups : 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  const int warpgroup = warp / 4;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int window = static_cast<int>(args.sliding_window);
  const int items = static_cast<int>(args.tile_count * args.cache.kv_heads);
  __syncthreads();

  if (warpgroup == kGroups) {
    give_registers<24>();
    // The first warp copies keys, the second values; a lane finds the row in the cache of a box.
    const int which = warp % 4;
    if (which >= 2) {
      // A lane finds two of the 64 rows, and copies a column of all.
      const int of = which - 2;
      constexpr int kUnits = D / 8, kStep = 32 / kUnits;  // of 16 bytes; rows at a time
      const int unit = lane % kUnits;
      const auto* from = static_cast<const uint4*>(args.q) + unit;
      unsigned char* const to =
          memory + of * S::kQueryBytes + unit / 8 * (kGroupRows * 128) + lane / kUnits * 128;
#pragma unroll 1
      for (int n = 0; item_of(n) < items; ++n) {
        const Item item(args, item_of(n));
        int places[2];  // in units; negative: zeros
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = item.row + kGroupRows * of + 32 * half + lane;
          places[half] = row < item.rows
                             ? static_cast<int>(((item.start + row / group) * args.q_stride +
                                                 (item.kv_head * group + row % group) * dim) /
                                                8)
                             : -1;
        }
        barrier_spin(queries_empty(of), n % 2 ^ 1);
        if (lane == 0) item_slots[of][n % 2] = item;
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll 4
          for (int r = 0; r < 32; r += kStep) {
            const int place = __shfl_sync(0xffffffffu, places[half], r + lane / kUnits);
            const bool valid = place >= 0 && unit * 8 < dim;
            copy_async(to + (32 * half + r) * 128 + ((unit % 8) ^ ((r + lane / kUnits) % 8)) * 16,
                       from + (valid ? place : 0), valid);
          }
        commit_copies();
        wait_for_copies<0>();
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (lane == 0) barrier_arrive(queries_full(of));
      }
      return;
    }
    const CUtensorMap* map = which == 0 ? &key_map : &value_map;
    const int stages = which == 0 ? kStages : S::kValueStages;
    const auto page_tokens = static_cast<uint32_t>(args.cache.page_tokens);
    const auto kv_heads = static_cast<int>(args.cache.kv_heads);
    int stage = 0, phase = 1;
#pragma unroll 1
    for (int n = 0; item_of(n) < items; ++n) {
      const Item item(args, item_of(n));
      const int32_t* pages = args.batch.block_table + item.sequence * args.batch.max_blocks;
#pragma unroll 1
      for (int chunk = 0; chunk < item.chunks; ++chunk) {
        const int first = (item.first_chunk + chunk) * kKeys;
        int boxes, row = 0;
        if constexpr (kWidened) {
          boxes = 1;
          row = ((args.widened_first[item.sequence] + item.first_chunk + chunk) * kv_heads +
                 item.kv_head) *
                kKeys;
        } else {
          boxes = (min(kKeys, item.context - first) + box_tokens - 1) / box_tokens;
          if (lane < boxes) {
            const auto key = static_cast<uint32_t>(first + lane * box_tokens);
            const uint32_t page = key / page_tokens;
            row = (pages[page] * kv_heads + item.kv_head) * static_cast<int>(page_tokens) +
                  static_cast<int>(key - page * page_tokens);
          }
        }
        const uint32_t barrier = full(which, stage), to = stage_of(which, stage);
        const bool scales = kWidened && which == 0;
        if (elect_one()) {
          barrier_spin(empty(which, stage), phase);
          barrier_expect(barrier, boxes * box_tokens * 2 * D + (scales ? kScaleStageBytes : 0));
          if (scales)
            bulk_copy(scale_ring + stage * kScaleStageBytes,
                      widened_scales(args) + int64_t{row} * 2, kScaleStageBytes, barrier);
        }
        __syncwarp();
#pragma unroll 1
        for (int box = 0; box < boxes; ++box) {
          const int row_of = __shfl_sync(0xffffffffu, row, box);
          if (elect_one()) {
#pragma unroll
            for (int run = 0; run < S::kRuns; ++run)
              tensor_copy_2d(to + run * kRunBytes + box * box_tokens * 128, map, 64 * run, row_of,
                             barrier);
          }
          __syncwarp();
        }
        if (++stage == stages) stage = 0, phase ^= 1;
      }
    }
    return;
  }
  take_registers<240>();

  const uint32_t own_queries = queries + warpgroup * S::kQueryBytes;
  const int thread_row = kGroupRows * warpgroup + warp % 4 * 16 + lane / 4, column = lane % 4;
  int first_chunk = 0, low = 0, high = 0, position[2];
  const float factor = args.scale * kLog2E;

  float s[kKeys / 2], acc[D / 2], total[D / 2];
  uint32_t p[kKeys / 16][4];
  float m[2], length[2], total_m[2], total_length[2];

  const auto score = [&](int stage) {  // s = q · keys, begun
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      const uint32_t run = step / 4;
      wgmma(s, swizzled_operand(own_queries + run * (kGroupRows * 128)) + step % 4 * 2,
            swizzled_operand(stage_of(0, stage) + run * kRunBytes) + step % 4 * 2, step > 0);
    }
    wgmma_commit();
  };
  const auto weigh = [&](int stage) {  // acc = p · values, begun
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
      wgmma_transposed(acc, p[step], transposed_operand(stage_of(1, stage), kRunBytes) + step * 128,
                       step > 0);
    wgmma_commit();
  };
  // Scores of a chunk to probabilities, in their place.
  const auto soften = [&](int chunk, int stage) {
    const float* scales =
        reinterpret_cast<const float*>(memory + (scale_ring - queries) + stage * kScaleStageBytes) +
        2 * column;
    if constexpr (kWidened) {
#pragma unroll
      for (int tile = 0; tile < kKeys / 8; ++tile) {
        const float2 pair = *reinterpret_cast<const float2*>(scales + 8 * tile);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          s[4 * tile + 2 * half] *= pair.x;
          s[4 * tile + 2 * half + 1] *= pair.y;
        }
      }
    }
    const int first_key = (first_chunk + chunk) * kKeys;
    if (first_key + kKeys - 1 > low || (window != 0 && first_key <= high - window))
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        const int at = i / 4 * 8 + 2 * column + i % 2;
        if (!visible(first_key + at, position[i / 2 % 2], window)) s[i] = -INFINITY;
      }
    float largest[2][2] = {{kLowest, kLowest}, {kLowest, kLowest}};
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i)
      largest[i / 2 % 2][i % 2] = fmaxf(largest[i / 2 % 2][i % 2], s[i]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      m[half] = quad_max(fmaxf(largest[half][0], largest[half][1])) * factor;
      length[half] = 0;
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) s[i] = probability(s[i], factor, m[i / 2 % 2]);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* pairs = s + 8 * step + 2 * half;
        length[half] += (pairs[0] + pairs[1]) + (pairs[4] + pairs[5]);
      }
    if constexpr (kWidened) {
#pragma unroll
      for (int tile = 0; tile < kKeys / 8; ++tile) {
        const float2 pair = *reinterpret_cast<const float2*>(scales + kKeys + 8 * tile);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          s[4 * tile + 2 * half] *= pair.x;
          s[4 * tile + 2 * half + 1] *= pair.y;
        }
      }
    }
  };
  const auto pack = [&] {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        p[step][i] = pack_bf16(s[8 * step + 2 * i], s[8 * step + 2 * i + 1]);
  };
  // What lies past the context may not be numbers.
  const auto clear_values = [&](int valid, int stage) {
    if (valid >= kKeys) return;
    for (int i = threadIdx.x % 128; i < (kKeys - valid) * S::kRuns * 8; i += 128)
      *reinterpret_cast<uint4*>(memory + (stage_of(1, stage) - queries) + i % S::kRuns * kRunBytes +
                                (valid + i / (8 * S::kRuns)) * 128 + i / S::kRuns % 8 * 16) = {};
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    named_barrier(1 + warpgroup, 128);
  };
  const auto await_turn = [&] { named_barrier(3 + warpgroup, kTurnThreads); };
  const auto end_turn = [&] { named_barrier_arrive(3 + (warpgroup ^ 1), kTurnThreads); };
  const auto add_to_total = [&] {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float both = fmaxf(total_m[half], m[half]);
      const Merge by = merge_factors(total_m[half], m[half], both);
      total_m[half] = both;
      total_length[half] = merge(total_length[half], quad_sum(length[half]), by);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 4 * tile + 2 * half + i;
          total[at] = merge(total[at], acc[at], by);
        }
    }
  };

  if (warpgroup == 1) end_turn();  // the first turn is warpgroup 0's
  // The stages that are read next, and their barriers' phases.
  int stage = 0, phase = 0, value_stage = 0, value_phase = 0;
  int chunks = 0;  // of the item whose scores are made
  const auto slot = [&](int n) -> const Item& { return item_slots[warpgroup][n % 2]; };
  const auto begin_item = [&](int n) {
    barrier_spin(queries_full(warpgroup), n % 2);
    const Item& item = slot(n);
    const int group_row = item.row + kGroupRows * warpgroup;
    first_chunk = item.first_chunk;
    chunks = item.chunks;
    // Positions of the warpgroup's first and last row.
    low = item.first_position + group_row / group;
    high = item.first_position + min(group_row + kGroupRows - 1, item.rows - 1) / group;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item.row + thread_row + 8 * half;
      position[half] = row < item.rows ? item.first_position + row / group : -1;
    }
  };
  // Keys' stages are released when their scores are there, with scales when those were applied;
  // queries when the scores of the item's last chunk are.
  const auto scored = [&](int chunk) {
    settle(s);
    if (lane == 0) {
      if (!kWidened) barrier_arrive(empty(0, stage));
      if (chunk + 1 == chunks) barrier_arrive(queries_empty(warpgroup));
    }
  };
  const auto softened = [&] {
    if constexpr (kWidened) {
      __syncwarp();  // all lanes have read them
      if (lane == 0) barrier_arrive(empty(0, stage));
    }
    if (++stage == kStages) stage = 0, phase ^= 1;
  };
  const auto weighed = [&] {
    settle(acc);
    if (lane == 0) barrier_arrive(empty(1, value_stage));
    if (++value_stage == S::kValueStages) value_stage = 0, value_phase ^= 1;
  };
  const auto start_totals = [&] {
#pragma unroll
    for (int half = 0; half < 2; ++half) total_m[half] = kLowest, total_length[half] = 0;
#pragma unroll
    for (int i = 0; i < D / 2; ++i) total[i] = 0;
  };
  const auto store = [&](int n) {
    const Item& item = slot(n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = item.row + thread_row + 8 * half;
      if (row >= item.rows) continue;
      auto* out = static_cast<__nv_bfloat16*>(args.out) +
                  (item.start + row / group) * args.out_stride +
                  (item.kv_head * group + row % group) * dim;
      const float inverse = total_length[half] > 0 ? 1.0f / total_length[half] : 0.0f;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int d = 8 * tile + 2 * column;
        if (d < dim)
          *reinterpret_cast<uint32_t*>(out + d) = pack_bf16(
              total[4 * tile + 2 * half] * inverse, total[4 * tile + 2 * half + 1] * inverse);
      }
    }
  };
  // Of the scores that are begun: waits for their values, and for the next keys.
  const auto await_copies = [&](bool more) {
    const int next = stage + 1 == kStages ? 0 : stage + 1;
    barrier_spin(full(1, value_stage), value_phase);
    if (more) barrier_spin(full(0, next), next == 0 ? phase ^ 1 : phase);
  };
  begin_item(0);
  barrier_spin(full(0, stage), phase);
  await_turn();
  score(stage);
  end_turn();
  start_totals();
  int n = 0, chunk = 0;  // whose probabilities are made
  await_copies(chunks > 1 || item_of(1) < items);
  wgmma_wait<0>();
  scored(0);
  soften(0, stage);
  softened();
  pack();
#pragma unroll 1
  for (;;) {
    const bool ends = chunk + 1 == chunks;
    if (ends) {
      if constexpr (!kWidened)  // which has zeros there
        clear_values(slot(n).context - (first_chunk + chunk) * kKeys, value_stage);
      if (item_of(n + 1) >= items) break;
      begin_item(n + 1);
      chunk = -1;
    }
    await_turn();
    weigh(value_stage);
    score(stage);
    end_turn();
    wgmma_wait<1>();
    weighed();
    add_to_total();
    if (ends) {
      store(n);
      start_totals();
      ++n;
    }
    ++chunk;
    await_copies(chunk + 1 < chunks || item_of(n + 1) < items);
    wgmma_wait<0>();
    scored(chunk);
    soften(chunk, stage);
    softened();
    pack();
  }
  await_turn();
  weigh(value_stage);
  end_turn();
  wgmma_wait<0>();
  weighed();
  add_to_total();
  store(n);
  if (warpgroup == 0) await_turn();  // what warpgroup 1 ended last
}

// Keys, values and scales of a chunk of a sequence and head, widened; zeros past the context.
template <KvStorage storage>
__global__ void __launch_bounds__(256) widen_kernel(AttentionArgs args) {
  let_next_kernel_launch();
  wait_for_previous_kernel();
  const int chunk = blockIdx.x, kv_head = blockIdx.y, sequence = blockIdx.z;
  const int first = args.widened_first[sequence], context = args.batch.context_len[sequence];
  if (first < 0 || chunk * kKeys >= context) return;
  const int kv_heads = static_cast<int>(args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim), units = dim / 16;
  const int64_t chunk_index = int64_t{first + chunk} * kv_heads + kv_head;
  const int32_t* pages = args.batch.block_table + sequence * args.batch.max_blocks;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    const auto* from = static_cast<const uint4*>(which == 0 ? args.cache.k : args.cache.v);
    auto* to = static_cast<uint4*>(args.widened) +
               (which * args.widened_chunks * kv_heads + chunk_index) * kKeys * units * 2;
#pragma unroll 4
    for (int i = threadIdx.x; i < kKeys * units; i += 256) {
      const int key = chunk * kKeys + i / units;
      uint4 out[2] = {};
      if (key < context) {
        const uint4 codes = from[cache_row(args, pages, kv_head, key) * units + i % units];
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
        uint32_t wide[8];
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          wide[2 * w] = widen<storage>(__byte_perm(words[w], 0, 0x4140));
          wide[2 * w + 1] = widen<storage>(__byte_perm(words[w], 0, 0x4342));
        }
        out[0] = make_uint4(wide[0], wide[1], wide[2], wide[3]);
        out[1] = make_uint4(wide[4], wide[5], wide[6], wide[7]);
      }
      to[2 * i] = out[0];
      to[2 * i + 1] = out[1];
    }
  }
  const int key = chunk * kKeys + static_cast<int>(threadIdx.x) % kKeys;
  const float* scales =
      static_cast<int>(threadIdx.x) < kKeys ? args.cache.k_scales : args.cache.v_scales;
  widened_scales(args)[chunk_index * 2 * kKeys + threadIdx.x] =
      key < context ? scales[cache_row(args, pages, kv_head, key)] : 0.0f;
}

template <int D, bool kWidened>
void launch_prefill(const AttentionArgs& args, cudaStream_t stream) {
  using S = Shape<D, kWidened>;
  check(cudaFuncSetAttribute(prefill_kernel<D, kWidened>,
                             cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "asking for shared memory");
  static const int sms = [] {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "number of SMs");
    return count;
  }();
  const int box_tokens = kWidened ? kKeys : cache_box_tokens(args.cache);
  const void *keys = args.cache.k, *values = args.cache.v;
  if constexpr (kWidened) {
    keys = args.widened;
    values = static_cast<const __nv_bfloat16*>(args.widened) +
             args.widened_chunks * args.cache.kv_heads * kKeys * args.cache.head_dim;
  }
  launch_dependent(
      prefill_kernel<D, kWidened>,
      dim3(static_cast<unsigned>(std::min<int64_t>(sms, args.tile_count * args.cache.kv_heads))),
      dim3(kThreads), S::kSharedBytes, stream, args,
      cache_map(keys, false, args.cache.head_dim, 64, box_tokens,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
      cache_map(values, false, args.cache.head_dim, 64, box_tokens,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B),
      box_tokens);
}

template <bool kWidened>
void launch_prefill(const AttentionArgs& args, cudaStream_t stream) {
  if (args.cache.head_dim <= 64)
    launch_prefill<64, kWidened>(args, stream);
  else
    launch_prefill<128, kWidened>(args, stream);
}

}  // namespace

bool attention_prefill_sm90(const AttentionArgs& args, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(args.q) % 16 == 0 && args.q_stride % 8 == 0;
  if (args.cache.head_dim <= 32 || !aligned || args.tile_count >= 1 << 20) return false;
  if (args.cache.storage == KvStorage::kBf16) {
    launch_prefill<false>(args, stream);
    return true;
  }
  if (args.widened == nullptr) return false;
  launch_dependent(
      args.cache.storage == KvStorage::kInt8 ? widen_kernel<KvStorage::kInt8>
                                             : widen_kernel<KvStorage::kFp8>,
      dim3(static_cast<unsigned>(args.widened_most), static_cast<unsigned>(args.cache.kv_heads),
           static_cast<unsigned>(args.batch.b)),
      dim3(256), 0, stream, args);
  launch_prefill<true>(args, stream);
  return true;
}

}  // namespace whit::cuda
