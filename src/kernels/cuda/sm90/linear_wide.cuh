// The kernel of linear_wide.h, a template of format and token tile. Each format's instances are a
// source of their own (linear_wide_*.cu), which nvcc compiles side by side.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sm90/linear_operands.cuh"
#include "kernels/cuda/sm90/linear_wide_shape.cuh"
#include "kernels/cuda/sm90/linear_wide_store.cuh"
#include "kernels/cuda/sm90/ptx_sm90.cuh"

namespace whit::cuda {

template <LinearFormat format, int kTokens, int kPiece, bool kZeroPoints>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide(const __grid_constant__ WideParams p, const __grid_constant__ CUtensorMap inputs) {
  using S = WideShape<format, kTokens, kPiece>;
  constexpr bool kExact = S::kExact, kGrouped = S::kGrouped;
  extern __shared__ uint8_t unaligned[];
  // The swizzle is of address bits: stages begin at multiples of 1024.
  uint8_t* const stages = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  float* const all_sums = reinterpret_cast<float*>(stages + S::kStages * S::kStageBytes);
  const uint32_t barriers = shared_address(all_sums) + kWideConsumers * S::kSumBytes;
  auto full = [&](int stage) { return barriers + stage * 16; };
  auto empty = [&](int stage) { return barriers + stage * 16 + 8; };
  // Behind the stages' 8 pairs.
  const uint32_t scales_full = barriers + 128, scales_empty = scales_full + 8;
  float* const token_scales = all_sums + (kWideConsumers * S::kSumBytes + 1024) / 4;

  constexpr int kStepBytes = S::kWeightBytes;  // of a row block: tiles follow one another
  // By shuffle, or ptxas does not see that a warp goes one way and keeps the pipeline's addresses
  // in registers of each thread (100 instructions more in two steps).
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int cluster = p.parts * p.sharers;
  const int rank = cluster == 1 ? 0 : blockIdx.x % cluster;
  const int part = p.parts == 1 ? 0 : rank, sharer = p.sharers == 1 ? 0 : rank;
  const int first_tile = blockIdx.x / cluster, tile_step = gridDim.x / cluster;
  const int own_chunks = p.chunks / p.parts;
  const int step_begin = part * own_chunks * p.steps / p.chunks;
  const int step_end = (part + 1) * own_chunks * p.steps / p.chunks;
  // The tile of whole ones that it is, or is half of.
  auto whole_of = [&](int tile) {
    return tile < p.whole_tiles ? tile : p.whole_tiles + (tile - p.whole_tiles) / 2;
  };
  // Of 64 rows: this block's first in a tile.
  auto row_block = [&](int tile) {
    const int rows = whole_of(tile) / p.token_tiles;
    if (tile < p.whole_tiles) return (rows * p.sharers + sharer) * kWideConsumers;
    return (rows * kWideConsumers + (tile - p.whole_tiles) % 2) * p.sharers + sharer;
  };
  auto first_token = [&](int tile) { return whole_of(tile) % p.token_tiles * kTokens; };
  // Where a warpgroup's tiles end, and its turns of halves begin in which it has no rows.
  auto end_of_tiles = [&](int group) { return group == 0 ? p.tiles : p.whole_tiles; };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barrier_init(full(stage), kWideConsumers + 1);  // whoever copies
      barrier_init(empty(stage), kWideConsumers * p.sharers);
    }
    barrier_init(scales_full, 32);
    barrier_init(scales_empty, kWideConsumers * 128);
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  if (p.sharers > 1)
    cluster_sync();
  else
    __syncthreads();
  let_next_kernel_launch();

  if (group == kWideConsumers) {
    give_registers<40>();
    // A warp for each warpgroup's weights and one for the tokens, one thread of each: by elect, or
    // ptxas wraps every copy in a loop over the lanes that might differ.
    const int copier = __shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0);
    if (copier < kWideConsumers && elect_one()) {
      const int64_t block_bytes = p.layout.block_bytes();
      const uint32_t first = shared_address(stages) + S::kInputBytes + copier * S::kWeightBytes;
      int stage = 0, phase = 1;
      // Weights do not depend on the kernel before: the first stages' are asked for at once.
      int tile = first_tile;
      for (; tile < end_of_tiles(copier); tile += tile_step) {
        // Past the last row block: the last again, whose result is not stored.
        const uint8_t* from = p.weight +
                              min(row_block(tile) + copier, p.layout.row_blocks - 1) * block_bytes +
                              int64_t{step_begin} * kStepBytes;
        for (int step = step_begin; step < step_end; ++step, from += kStepBytes) {
          barrier_wait(empty(stage), phase);
          const uint32_t to = first + stage * S::kStageBytes;
          barrier_expect(full(stage), S::kWeightBytes);
          copy_weights<S::kWeightBytes>(to, from, !S::kInt4 && p.layout.tiles - 2 * step == 1,
                                        full(stage));
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
      }
      for (; tile < p.tiles; tile += tile_step)
#pragma unroll 1
        for (int step = step_begin; step < step_end; ++step) {
          barrier_wait(empty(stage), phase);
          barrier_arrive(full(stage));
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
    } else if (copier == kWideConsumers && elect_one()) {
      wait_for_previous_kernel();
      int stage = 0, phase = 1;
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
        // Behind the last row a box takes longer than within: the tile's first rows instead.
        const int first = first_token(tile), second = first + sharer * (kTokens / 2);
        const int token = second < p.m ? second : first;
        for (int step = step_begin; step < step_end; ++step) {
          barrier_wait(empty(stage), phase);
          const uint32_t to =
              shared_address(stages) + stage * S::kStageBytes + sharer * (S::kRunBytes / 2);
          barrier_expect(full(stage), S::kInputBytes);
#pragma unroll
          for (int run = 0; run < S::kRuns; ++run) {
            const int column = (step * S::kRuns + run) * (kWideStepK / S::kRuns);
            if (p.sharers == 1)
              tensor_copy_2d(to + run * S::kRunBytes, &inputs, column, token, full(stage));
            else
              tensor_copy_2d_to_all(to + run * S::kRunBytes, &inputs, column, token, full(stage),
                                    3);
          }
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
      }
    } else if (copier == kWideConsumers + 1 && S::kCodes) {
      wait_for_previous_kernel();
      int phase = 1;
      for (int tile = first_tile; tile < p.tiles; tile += tile_step, phase ^= 1) {
        const int token = first_token(tile);
        float scales[kTokens / 32];
#pragma unroll
        for (int i = 0; i < kTokens / 32; ++i)
          scales[i] = p.epilogue.x_scale[min(token + threadIdx.x % 32 + 32 * i, p.m - 1)];
        barrier_wait(scales_empty, phase);
#pragma unroll
        for (int i = 0; i < kTokens / 32; ++i) token_scales[threadIdx.x % 32 + 32 * i] = scales[i];
        barrier_arrive(scales_full);
      }
    }
  } else {
    take_registers<232>();
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
    const int r = lane / 4, t = lane % 4;
    float* const sums = all_sums + group * (S::kSumBytes / 4);
    // This thread's first sum among the staged: column 2t of rows 16·warp + r.
    float* const own = sums + 2 * t * kWidePitch + warp * 16 + r;
    auto staged = [&](int value) -> float& {
      return own[(value / 4 * 8 + value % 2) * kWidePitch + value % 4 / 2 * 8];
    };
    // By shuffle too: of addresses ptxas knows how to make them anew, and does so in every step,
    // before its first product. (With bf16 the registers do not suffice to keep it.)
    const uint32_t first_stage =
        S::kCodes ? __shfl_sync(0xffffffff, shared_address(stages), 0) : shared_address(stages);
    const uint64_t first_inputs = swizzled_operand(first_stage);
    const uint64_t first_weights = core_matrix_operand(
        first_stage + S::kInputBytes + group * S::kWeightBytes, 128, kUnitBytes / 2);
    // Who says that a stage has been read: thread 0, and to the other sharer's block thread 64.
    const bool releases = thread % 64 == 0 && thread < 64 * p.sharers;
    const uint32_t released = cluster_address(empty(0), thread == 0 ? rank : rank ^ 1);
    wait_for_previous_kernel();

    typename S::Product products[kGrouped ? 2 : 1][S::kValues];
    float sum[S::kHalves][kGrouped ? S::kValues : 1];
    TileFragments<format> fragments[S::kSets];
    float scales[2][2];  // [parity of the step][rows r and r + 8]
    TileWords<format> words;
    int next = 0, phase = 0;  // the stage that is loaded next, and its barrier's phase
    int scales_phase = 0;
    auto release_scales = [&] {
      if constexpr (S::kCodes) barrier_arrive(scales_empty);
      scales_phase ^= 1;
    };
    // Waits for it and loads its weights; returns it.
    auto load = [&] {
      barrier_wait(full(next), phase);
      const uint8_t* weights =
          stages + next * S::kStageBytes + S::kInputBytes + group * S::kWeightBytes;
      words.template load<4 * kUnitBytes>(weights + warp * kUnitBytes,
                                          weights + 4 * kUnitBytes + warp * kUnitScaleBytes, lane);
      const int loaded = next;
      if (++next == S::kStages) next = 0, phase ^= 1;
      return loaded;
    };
    auto release = [&](int stage) {
      if constexpr (S::kCodes) {
        if (releases) barrier_arrive_cluster(released + stage * 16);
      } else {  // a register less
        if (thread == 0) barrier_arrive(empty(stage));
        if (thread == 64 && p.sharers > 1)
          barrier_arrive_cluster(cluster_address(empty(stage), rank ^ 1));
      }
    };
    auto scale_products = [&](auto& sums_of_half, const auto& products_of_half,
                              const float(&scale)[2]) {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i) {
        const float product = products_of_half[i];
        sums_of_half[i] = __fmaf_rn(scale[i % 4 / 2], product, sums_of_half[i]);
      }
    };
    auto unpack_scales = [&](float(&to)[2]) {
      if constexpr (kGrouped) {
        constexpr float kUnit = format == LinearFormat::kW4A8 ? kInt4Unit<kZeroPoints> : 1.0f;
        to[0] = scale_of(words.scales[0]) * kUnit;
        to[1] = scale_of(words.scales[1]) * kUnit;
      }
    };
    // Where weights are operands as they lie: products[0] = weights · tokens over steps begin …
    // end − 1. (This and the other way are templates, of which each format has one.)
    auto multiply_shared = [&](auto begin, auto end) {
      int before = 0;
      for (int step = begin; step < end; ++step) {
        barrier_wait(full(next), phase);
        const int stage = next;
        if (++next == S::kStages) next = 0, phase ^= 1;
        const uint64_t a = operand_in_stage<S::kStageBytes>(first_weights, stage);
        const uint64_t b = operand_in_stage<S::kStageBytes>(first_inputs, stage);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < S::kMmas; ++i)
          wgmma(products[0], a + i / 2 * (4 * kUnitBytes / 16) + i % 2 * (256 / 16), b + i * 2,
                i > 0 || step > begin);
        wgmma_commit();
        wgmma_wait<1>();
        if (step > begin) release(before);
        before = stage;
      }
      wgmma_wait<0>();
      release(before);
    };
    // sum (without groups, products[0]) = weights · tokens over steps begin … end − 1. One unit of
    // products is always being multiplied: while it is, the one before is scaled and the weights
    // after are unpacked.
    auto multiply_unpacked = [&](auto begin, auto end) {
      int stage = load(), before = stage, after = stage;
      fragments[0].template unpack<kZeroPoints>(words);
      unpack_scales(scales[0]);
      if constexpr (kGrouped) {
        // What the first unit finds to be scaled: nothing.
        scales[1][0] = scales[1][1] = 0;
#pragma unroll
        for (int i = 0; i < S::kValues; ++i) {
          products[1][i] = 0;
#pragma unroll
          for (int h = 0; h < S::kHalves; ++h) sum[h][i] = 0;
        }
      }
      auto step_of = [&](auto parity, int step) {
        constexpr int kParity = decltype(parity)::value;
        TileFragments<format>& now = fragments[S::kSets == 2 ? kParity : 0];
        TileFragments<format>& following = fragments[S::kSets == 2 ? 1 - kParity : 0];
#pragma unroll
        for (int half = 0; half < S::kHalves; ++half) {
          const uint64_t b = operand_in_stage<S::kStageBytes>(first_inputs, stage) +
                             half * (S::kUnitTokens * 128 / 16);
          auto& unit = products[!kGrouped ? 0 : S::kHalves == 2 ? half : kParity];
          wgmma_fence();
#pragma unroll
          for (int i = 0; i < S::kMmas; ++i)
            multiply_add<format>(unit, now.a[i], b + i / 4 * (S::kRunBytes / 16) + i % 4 * 2,
                                 i > 0 || (!kGrouped && step > begin));
          wgmma_commit();
          wgmma_wait<1>();
          if (half == 0) {
            if (step > begin) release(before);
            if (step + 1 < end) after = load();
          }
          if constexpr (kGrouped) {
            if (half == 0)
              scale_products(sum[S::kHalves - 1], products[S::kHalves == 2 ? 1 : 1 - kParity],
                             scales[1 - kParity]);
            else
              scale_products(sum[0], products[0], scales[kParity]);
          }
          if (half == 0 && step + 1 < end) {
            if constexpr (S::kSets == 2) following.template unpack<kZeroPoints>(words);
            unpack_scales(scales[1 - kParity]);
          }
        }
        if constexpr (S::kSets == 1) {
          if (step + 1 < end) {
            wgmma_wait<0>();
            following.template unpack<kZeroPoints>(words);
          }
        }
        before = stage;
        stage = after;
      };
      // Written so that every path has the same products pending, or ptxas waits for them itself.
      auto finish = [&](auto parity) {
        [[maybe_unused]] constexpr int kParity = decltype(parity)::value;
        wgmma_wait<0>();
        release(before);
        if constexpr (kGrouped)
          scale_products(sum[S::kHalves - 1], products[S::kHalves == 2 ? 1 : kParity],
                         scales[kParity]);
      };
      int step = begin;
      for (; step + 2 <= end; step += 2) {
        step_of(std::integral_constant<int, 0>{}, step);
        step_of(std::integral_constant<int, 1>{}, step + 1);
      }
      if (step < end) {
        step_of(std::integral_constant<int, 0>{}, step);
        finish(std::integral_constant<int, 0>{});
      } else {
        finish(std::integral_constant<int, 1>{});
      }
    };

    auto multiply = [&](int begin, int end) {
      if constexpr (S::kShared)
        multiply_shared(begin, end);
      else
        multiply_unpacked(begin, end);
    };

    // What `multiply` left of a thread's values of the tile.
    auto sum_of = [&](int value) {
      if constexpr (kGrouped)
        return sum[value / S::kValues][value % S::kValues];
      else
        return products[0][value];
    };

    int tile = first_tile;
    for (; tile < end_of_tiles(group); tile += tile_step) {
      RowTerms terms;
      // Ahead of the products, which hide the way to them, where registers suffice.
      if constexpr (kExact)
        if (p.direct && p.parts == 1) terms.load<S>(p, row_block(tile) + group);
      if (kExact || kPiece < kTokens || own_chunks == 1) {
        multiply(step_begin, step_end);
      } else {
        for (int i = 0; i < own_chunks; ++i) {
          const int chunk = part * own_chunks + i;
          multiply(chunk * p.steps / p.chunks, (chunk + 1) * p.steps / p.chunks);
          if (i == 0) named_barrier(1 + group, 128);  // the tile before has been stored
          // Where others add them, each chunk's sums are staged for themselves.
          const int area = p.parts > 1 ? i * S::kAreaFloats : 0;
          if constexpr (!kExact) {
#pragma unroll
            for (int v = 0; v < kTokens / 2; ++v) {
              float& to = (&staged(v))[area];
              to = i == 0 || area > 0 ? sum_of(v) : __fadd_rn(to, sum_of(v));
            }
          }
        }
      }

      if constexpr (S::kCodes) barrier_wait(scales_full, scales_phase);
      if (p.direct && p.parts == 1 && (kExact || kPiece < kTokens || own_chunks == 1)) {
        const int block = row_block(tile) + group;
        if constexpr (!kExact) terms.load<S>(p, block);
        store_direct<S>(p, block, first_token(tile), group, terms, sums, token_scales, sum_of);
        release_scales();
        continue;
      }
      // What this thread stores: 8 rows of every 16th token; the blocks of a cluster that share K
      // share the tokens.
      const int block = row_block(tile) + group;
      const int row = block * kTileRows + thread % 8 * 8;
      const int scales_row = min(block, p.layout.row_blocks - 1) * kTileRows + thread % 8 * 8;
      float row_scales[8];
#pragma unroll
      for (int e = 0; e < 8; ++e)
        row_scales[e] = row_scale_of<format>(p.weight, p.layout, scales_row + e);
#pragma unroll
      for (int piece = 0; piece < kTokens / kPiece; ++piece) {
        const int own_tokens = kPiece / p.parts;
        const int first = first_token(tile) + piece * kPiece + part * own_tokens;
        if (kExact || kPiece < kTokens || own_chunks == 1) {
          named_barrier(1 + group, 128);  // what was staged before has been stored
#pragma unroll
          for (int i = 0; i < kPiece / 2; ++i) {
            const auto value = sum_of(piece * (kPiece / 2) + i);
            if constexpr (kExact)
              staged(i) = __int_as_float(value);
            else
              staged(i) = value;
          }
        }
        if (p.parts > 1) cluster_sync();
        named_barrier(1 + group, 128);
        if (block >= p.layout.row_blocks) continue;
          // Not unrolled: what runs once a tile should not be fetched from afar.
#pragma unroll 1
        for (int column = thread / 8; column < own_tokens; column += 16) {
          const int token = first + column;
          if (token >= p.m) break;
          const float x_scale =
              S::kCodes ? token_scales[piece * kPiece + part * own_tokens + column] : 1.0f;
          const float* from = sums + (part * own_tokens + column) * kWidePitch + thread % 8 * 8;
          uint32_t bits[8];
          auto take = [&](int c, const uint4& low, const uint4& high) {
            const uint32_t more[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int e = 0; e < 8; ++e) {
              if (c == 0)
                bits[e] = more[e];
              else if constexpr (kExact)
                bits[e] += more[e];
              else
                bits[e] =
                    __float_as_uint(__fadd_rn(__uint_as_float(bits[e]), __uint_as_float(more[e])));
            }
          };
          if (p.parts == 1) {
            take(0, *reinterpret_cast<const uint4*>(from),
                 *reinterpret_cast<const uint4*>(from + 4));
          } else {
            const int addends = kExact ? p.parts : p.chunks, each = addends / p.parts;
            uint4 halves[kWideMostParts][2];
#pragma unroll
            for (int c = 0; c < kWideMostParts; ++c)
#pragma unroll
              for (int h = 0; h < 2; ++h)
                if (c < addends)
                  halves[c][h] = load_cluster(
                      shared_address(from + c % each * S::kAreaFloats + 4 * h), c / each);
#pragma unroll
            for (int c = 0; c < kWideMostParts; ++c)
              if (c < addends) take(c, halves[c][0], halves[c][1]);
          }
          float values[8];
#pragma unroll
          for (int e = 0; e < 8; ++e) values[e] = scaled<format>(bits[e], row_scales[e], x_scale);
          p.epilogue.store_8(values, token, row, p.n, p.vectors);
        }
      }
      release_scales();
    }
    for (; tile < p.tiles; tile += tile_step) {
#pragma unroll 1
      for (int step = step_begin; step < step_end; ++step) {
        barrier_wait(full(next), phase);
        release(next);
        if (++next == S::kStages) next = 0, phase ^= 1;
      }
      if constexpr (S::kCodes) barrier_wait(scales_full, scales_phase);
      release_scales();
    }
  }
  // The producer too, and nobody leaves while others of the cluster read its sums or write to its
  // stages and barriers.
  __syncwarp();
  if (p.parts > 1 && group == kWideConsumers) cluster_sync();
  if (cluster > 1) cluster_sync();
}

template <LinearFormat format, int kTokens, int kPiece, bool kZeroPoints>
void launch_wide(const LinearArgs& args, const WideParams& p, int sms, cudaStream_t stream) {
  using S = WideShape<format, kTokens, kPiece>;
  auto* kernel = wide<format, kTokens, kPiece, kZeroPoints>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "shared memory of the wide linear");
  const int cluster = p.parts * p.sharers;
  const int blocks = p.parts == 1 ? std::min(p.tiles, sms / cluster) * cluster : p.tiles * cluster;
  launch_clusters(kernel, dim3(blocks), cluster, dim3(kWideThreads), S::kSharedBytes, stream, p,
                  input_map(args, kTokens / p.sharers));
}

template <LinearFormat format, int kTokens, bool kZeroPoints>
void launch_wide(const LinearArgs& args, const WideParams& p, int sms, cudaStream_t stream) {
  if (kTokens <= 64 || p.parts > 1 ||
      (p.chunks > 1 && !WideShape<format, kTokens, kTokens>::kExact)) {
    if constexpr (kTokens <= 128)
      launch_wide<format, kTokens, kTokens, kZeroPoints>(args, p, sms, stream);
  } else {
    if constexpr (kTokens > 64) launch_wide<format, kTokens, 32, kZeroPoints>(args, p, sms, stream);
  }
}

// tokens is a tile that the format has: 32, 64 or 128, where sums are exact also 256.
template <LinearFormat format, bool kZeroPoints>
void launch_wide(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                 cudaStream_t stream) {
  switch (tokens) {
    case 32:
      return launch_wide<format, 32, kZeroPoints>(args, p, sms, stream);
    case 64:
      return launch_wide<format, 64, kZeroPoints>(args, p, sms, stream);
    case 128:
      return launch_wide<format, 128, kZeroPoints>(args, p, sms, stream);
    default:
      if constexpr (WideShape<format, 32, 32>::kExact)
        launch_wide<format, 256, kZeroPoints>(args, p, sms, stream);
  }
}

// How many blocks run at once in clusters of that size: not every group of SMs is filled by them.
int blocks_in_clusters(int size, int sms);

void wide_w4a8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
               cudaStream_t stream);
void wide_w4a8_two_level(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                         cudaStream_t stream);
void wide_w4a16(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                cudaStream_t stream);
void wide_w8a16(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                cudaStream_t stream);
void wide_w4afp8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
                 cudaStream_t stream);
void wide_w8a8(const LinearArgs& args, const WideParams& p, int tokens, int sms,
               cudaStream_t stream);

}  // namespace whit::cuda
