#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sm90/linear_operands.cuh"
#include "kernels/cuda/sm90/linear_turns.h"
#include "kernels/cuda/sm90/linear_wide_store.cuh"
#include "kernels/cuda/sm90/ptx_sm90.cuh"

namespace whit::cuda {
namespace {

constexpr int kSharers = 2;    // blocks of a cluster
constexpr int kRowBlocks = 2;  // of 64 rows, in a tile

struct TurnShape : OperandTraits<LinearFormat::kW8A8> {
  static constexpr int kTileTokens = kTurnTokens;
  static constexpr int kDirectTokens = 64;             // whose rows of bf16 are staged at once
  static constexpr int kWeightBytes = 8 * kUnitBytes;  // of 64 rows, in a stage
  static constexpr int kInputBytes = kTileTokens * kWideStepK;
  static constexpr int kStageBytes = kInputBytes + kRowBlocks * kWeightBytes;
  // Of one warpgroup.
  static constexpr int kSumBytes = kDirectTokens * kTileRows * 2;
  static constexpr int kScaleBytes = kTileTokens * 4;
  // As many as fit beside those, 1 KB of barriers and 1 KB of alignment.
  static constexpr int kOwnBytes = kWideConsumers * (kSumBytes + kScaleBytes);
  static constexpr int kStages = (kMostSharedBytes - 2048 - kOwnBytes) / kStageBytes;
  static constexpr int kSharedBytes = 2048 + kOwnBytes + kStages * kStageBytes;
  static constexpr int kValues = kTileTokens / 2;  // of a thread in 64 rows
};

__global__ void __launch_bounds__(kWideThreads, 1)
    turns(const __grid_constant__ WideParams p, const __grid_constant__ CUtensorMap inputs) {
  using S = TurnShape;
  extern __shared__ uint8_t unaligned[];
  // The swizzle is of address bits: stages begin at multiples of 1024.
  uint8_t* const stages = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  float* const all_sums = reinterpret_cast<float*>(stages + S::kStages * S::kStageBytes);
  float* const all_scales = all_sums + kWideConsumers * S::kSumBytes / 4;
  const uint32_t barriers = shared_address(all_scales) + kWideConsumers * S::kScaleBytes;
  auto full = [&](int stage) { return barriers + stage * 16; };
  auto empty = [&](int stage) { return barriers + stage * 16 + 8; };
  auto turn_of = [&](int group) { return barriers + S::kStages * 16 + group * 8; };

  // By shuffle, as in linear_wide.cuh.
  const int group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
  const int rank = blockIdx.x % kSharers;
  const int first_tile = blockIdx.x / kSharers, tile_step = gridDim.x / kSharers;
  auto row_block = [&](int tile) { return (tile / p.token_tiles * kSharers + rank) * kRowBlocks; };
  auto first_token = [&](int tile) { return tile % p.token_tiles * S::kTileTokens; };

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barrier_init(full(stage), 2);          // who copies weights, who copies tokens
      barrier_init(empty(stage), kSharers);  // a consumer of each block
    }
    for (int consumer = 0; consumer < kWideConsumers; ++consumer)
      barrier_init(turn_of(consumer), 1);
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  cluster_sync();
  let_next_kernel_launch();

  if (group == kWideConsumers) {
    give_registers<40>();
    // A warp each, of which one thread copies: by elect, as in linear_wide.cuh.
    const int copier = __shfl_sync(0xffffffff, threadIdx.x / 32 % 4, 0);
    if (copier == 0 && elect_one()) {
      const int64_t block_bytes = p.layout.block_bytes();
      int stage = 0, phase = 1;
      // Weights do not depend on the kernel before: the first stages' are asked for at once.
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
        // Past the last row block: the last again, whose result is not stored.
        const int last = p.layout.row_blocks - 1, block = row_block(tile);
        const uint8_t* from[kRowBlocks] = {p.weight + min(block, last) * block_bytes,
                                           p.weight + min(block + 1, last) * block_bytes};
        for (int step = 0; step < p.steps; ++step) {
          barrier_wait(empty(stage), phase);
          barrier_expect(full(stage), kRowBlocks * S::kWeightBytes);
          uint32_t to = shared_address(stages) + stage * S::kStageBytes + S::kInputBytes;
#pragma unroll
          for (int i = 0; i < kRowBlocks; ++i, to += S::kWeightBytes) {
            copy_weights<S::kWeightBytes>(to, from[i], p.layout.tiles - 2 * step == 1, full(stage));
            from[i] += S::kWeightBytes;
          }
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
      }
    } else if (copier == 1 && elect_one()) {
      wait_for_previous_kernel();
      constexpr int kOwnTokens = S::kTileTokens / kSharers;
      int stage = 0, phase = 1;
      for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
        // Behind the last row a box takes longer than within: the tile's first rows instead.
        const int first = first_token(tile), second = first + rank * kOwnTokens;
        const int token = second < p.m ? second : first;
        for (int step = 0; step < p.steps; ++step) {
          barrier_wait(empty(stage), phase);
          barrier_expect(full(stage), S::kInputBytes);
          tensor_copy_2d_to_all(
              shared_address(stages) + stage * S::kStageBytes + rank * (kOwnTokens * kWideStepK),
              &inputs, step * kWideStepK, token, full(stage), 3);
          if (++stage == S::kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    take_registers<232>();
    const int thread = threadIdx.x % 128;
    float* const sums = all_sums + group * (S::kSumBytes / 4);
    float* const token_scales = all_scales + group * (S::kScaleBytes / 4);
    const uint32_t first_stage = __shfl_sync(0xffffffff, shared_address(stages), 0);
    const uint64_t first_inputs = swizzled_operand(first_stage);
    const uint64_t first_weights =
        core_matrix_operand(first_stage + S::kInputBytes, 128, kUnitBytes / 2);
    // Who says that a stage has been read: thread 0, and to the other block thread 64.
    const bool releases = thread % 64 == 0;
    const uint32_t released = cluster_address(empty(0), thread == 0 ? rank : rank ^ 1);
    auto release = [&](int stage) {
      if (releases) barrier_arrive_cluster(released + stage * 16);
    };
    wait_for_previous_kernel();

    int next = 0, phase = 0;  // the stage that is read next, and its barrier's phase
    // Past the stages of the other's tile.
    auto pass = [&] {
      next += p.steps;
      phase ^= next / S::kStages & 1;
      next %= S::kStages;
    };
    if (group == 1) pass();
    // A barrier's phase is known by its parity: who waited for a stage before the other has seen
    // all of its own would take an old phase for the one to come.
    int turn = 1 - group;
    for (int tile = first_tile + group * tile_step; tile < p.tiles;
         tile += kWideConsumers * tile_step, pass()) {
      const int block = row_block(tile);
      RowTerms terms[kRowBlocks];
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i) terms[i].load<S>(p, block + i);
      // Read behind store_direct's barrier, and not any more behind its last.
      token_scales[thread] = p.epilogue.x_scale[min(first_token(tile) + thread, p.m - 1)];

      barrier_wait(turn_of(group), turn);
      turn ^= 1;
      int products[kRowBlocks][S::kValues];
      int before = 0;
      for (int step = 0; step < p.steps; ++step) {
        barrier_wait(full(next), phase);
        const int stage = next;
        if (++next == S::kStages) next = 0, phase ^= 1;
        const uint64_t a = operand_in_stage<S::kStageBytes>(first_weights, stage);
        const uint64_t b = operand_in_stage<S::kStageBytes>(first_inputs, stage);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < S::kMmas; ++k)
#pragma unroll
          for (int i = 0; i < kRowBlocks; ++i)
            wgmma(
                products[i],
                a + i * (S::kWeightBytes / 16) + k / 2 * (4 * kUnitBytes / 16) + k % 2 * (256 / 16),
                b + k * 2, k > 0 || step > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (step > 0) release(before);
        before = stage;
      }
      if (thread == 0) barrier_arrive(turn_of(1 - group));
      wgmma_wait<0>();
      release(before);
#pragma unroll
      for (int i = 0; i < kRowBlocks; ++i)
        store_direct<S>(p, block + i, first_token(tile), group, terms[i], sums, token_scales,
                        [&](int value) { return products[i][value]; });
    }
  }
  // The producer too: nobody leaves while the other block writes to its stages and barriers.
  __syncwarp();
  cluster_sync();
}

}  // namespace

void run_turns(const LinearArgs& args, const WideParams& p, int sms, cudaStream_t stream) {
  using S = TurnShape;
  check(cudaFuncSetAttribute(turns, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "shared memory of the linear in turns");
  launch_clusters(turns, dim3(std::min(p.tiles, sms / kSharers) * kSharers), kSharers,
                  dim3(kWideThreads), S::kSharedBytes, stream, p,
                  input_map(args, S::kTileTokens / kSharers));
}

}  // namespace whit::cuda
