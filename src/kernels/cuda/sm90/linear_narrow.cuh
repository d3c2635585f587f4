// The kernel of linear_narrow.h, a template of format and tokens. Each format's instances are a
// source of their own (linear_narrow_*.cu), which nvcc compiles side by side.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sm90/linear_operands.cuh"
#include "kernels/cuda/sm90/ptx_sm90.cuh"
#include "kernels/cuda/sm90/shared_memory.h"

namespace whit::cuda {

constexpr int kNarrowWarps = 16;  // that multiply
constexpr int kNarrowThreads = (kNarrowWarps + 4) * 32;
constexpr int kNarrowMostChunks = 4;
constexpr int kNarrowBarrier = 15;  // of all that multiply
// Stages whose weights are asked for before inputs, which wait behind what memory has been asked
// for: in a model the kernel before has ended long before a whole ring has come (docs/cuda.md).
constexpr int kNarrowEarlyStages = 3;

struct NarrowParams {
  const uint8_t* weight;
  TileLayout layout;
  Epilogue epilogue;
  int m, n;
  int steps;                       // along K, of 128
  int chunks_log;                  // of the chunks of K
  int block_units, larger_blocks;  // of 16 rows: of a block, or one more in the first
  int slots;                       // units that a block works on at once
  int stages;                      // of the rings
  int partial_bytes;               // of chunks' sums; 0: they take the place of inputs
  const uint8_t* x;
  int64_t x_row_bytes;
  int k_bytes;  // of x
  int blocks;
};

// kHalves: row halves of a unit, 8 rows each, that a warp has.
template <LinearFormat format, int kTokens, int kHalves>
struct NarrowShape : OperandTraits<format> {
  static_assert(!is_8_bits(format));
  using T = OperandTraits<format>;
  static constexpr int kGroupUnits = 2 * kHalves;        // of a warpgroup
  static constexpr int kValues = kTokens / 4 * kHalves;  // sums of a thread
  static constexpr int kRunBytes = kTokens * 128;
  static constexpr int kInputBytes = T::kRuns * kRunBytes;           // of 128 of K
  static constexpr int kWeightBytes = kUnitBytes + kUnitScaleBytes;  // of a unit
  // Sets of A operands: with two, the next step's are unpacked while this one's are multiplied; one
  // where registers have no room for more.
  static constexpr int kSets = kTokens + 8 * T::kMmas <= 80 ? 2 : 1;
  static constexpr int kPartialBytes = kValues * 128;  // of a warp
  // Stages whose first inputs do not come by tensor copies: those would wait behind the weights
  // that were asked for before. 16 KB of a chunk, as threads copy more slowly.
  static constexpr int kEager = std::max(16384 / kInputBytes, 2);
};

template <LinearFormat format, int kTokens, int kHalves, bool kZeroPoints>
__global__ void __launch_bounds__(kNarrowThreads, 1)
    narrow(const __grid_constant__ NarrowParams p, const __grid_constant__ CUtensorMap inputs) {
  using S = NarrowShape<format, kTokens, kHalves>;
  extern __shared__ uint8_t unaligned[];
  // The swizzle is of address bits: inputs begin at multiples of 1024.
  uint8_t* const shared = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;

  const int lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const int chunks = 1 << p.chunks_log, groups = blockDim.x / 128 - 1;
  // A warpgroup has up to kGroupUnits units of one chunk; copying warp i serves warpgroup i.
  const int group = warp / 4 < groups ? warp / 4 : warp % 4;
  const int chunk = group & (chunks - 1), turn = group >> p.chunks_log;
  const int begin = chunk * p.steps >> p.chunks_log;
  // Kept in registers, as are other bounds below, not made anew wherever they are needed.
  const int own_steps =
      static_cast<int>(per_thread(((chunk + 1) * p.steps >> p.chunks_log) - begin));
  const int block = blockIdx.x;
  const int first_unit = block * p.block_units + min(block, p.larger_blocks);
  const int end_unit = first_unit + p.block_units + (block < p.larger_blocks ? 1 : 0);

  // Shared memory: inputs [chunk][stage], weights [chunk][stage][slot], partial sums, barriers
  // [chunk][stage], 8 bytes for full and 8 for empty.
  const uint32_t weights_stride = per_thread(p.slots * S::kWeightBytes);
  uint8_t* const all_weights = shared + (p.stages << p.chunks_log) * S::kInputBytes;
  uint8_t* const behind_weights = all_weights + (p.stages << p.chunks_log) * weights_stride;
  uint8_t* const partials = p.partial_bytes > 0 ? behind_weights : shared;
  const uint32_t barriers = shared_address(behind_weights) + p.partial_bytes;
  // Behind them, of the copying warps alone: when a stage's first inputs have arrived.
  const uint32_t arrived = barriers + 16 * (p.stages << p.chunks_log);
  const uint32_t first_full = barriers + 16 * chunk * p.stages,
                 first_inputs = shared_address(shared) + chunk * p.stages * S::kInputBytes;
  const uint32_t end_full = per_thread(first_full + 16 * p.stages);
  uint8_t* const first_weights =
      all_weights + chunk * p.stages * weights_stride + S::kGroupUnits * turn * S::kWeightBytes;

  const bool elected = elect_one();
  if (elected) {
    const int sharers = groups >> p.chunks_log;
#pragma unroll 1
    for (int i = warp; i < chunks * p.stages; i += blockDim.x / 32) {
      barrier_init(barriers + 16 * i, sharers + 1);  // whoever copies
      barrier_init(barriers + 16 * i + 8, sharers);
      barrier_init(arrived + 8 * i, 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  __syncthreads();
  let_next_kernel_launch();

  if (warp >= 4 * groups) {
    give_registers<32>();
    if (elected) prefetch_map(&inputs);
    // Stages are taken in pairs: an odd last step's second one stays empty.
    const int stages_of_pass = (own_steps + 1) / 2 * 2;
    const int all = (end_unit - first_unit + p.slots - 1) / p.slots * stages_of_pass;
    // Of the warpgroup's weights: the units of a pass over K, those of them in the first of up to
    // two row blocks, and where the next step's lie.
    const bool has_weights = warp - 4 * groups < groups;
    int copied_unit = first_unit + S::kGroupUnits * turn, units = 0, here = 0;
    int weights_step = stages_of_pass;
    const uint8_t* from = nullptr;
    uint32_t weights_to = shared_address(first_weights), weights_full = first_full;
    auto copy_weights = [&] {
      if (weights_step == stages_of_pass) {
        units = max(
            min(min(S::kGroupUnits, p.slots - S::kGroupUnits * turn), end_unit - copied_unit), 0);
        here = min(units, 4 - copied_unit % 4);
        from = p.weight + (copied_unit / 4) * p.layout.block_bytes() +
               int64_t{begin} * p.layout.tile_bytes;
        copied_unit += p.slots;
        weights_step = 0;
      }
      if (weights_step == own_steps) {
        barrier_arrive(weights_full);
      } else {
        const int first = (copied_unit - p.slots) % 4;
        barrier_expect(weights_full, units * S::kWeightBytes);
        const uint32_t scales_to = weights_to + units * kUnitBytes;
        if (here > 0) {
          bulk_copy(weights_to, from + first * kUnitBytes, here * kUnitBytes, weights_full);
          bulk_copy(scales_to, from + 4 * kUnitBytes + first * kUnitScaleBytes,
                    here * kUnitScaleBytes, weights_full);
        }
        if (units > here) {
          const uint8_t* next = from + p.layout.block_bytes();
          bulk_copy(weights_to + here * kUnitBytes, next, (units - here) * kUnitBytes,
                    weights_full);
          bulk_copy(scales_to + here * kUnitScaleBytes, next + 4 * kUnitBytes,
                    (units - here) * kUnitScaleBytes, weights_full);
        }
        from += p.layout.tile_bytes;
      }
      ++weights_step;
      weights_to += weights_stride, weights_full += 16;
      if (weights_full == end_full)
        weights_to = shared_address(first_weights), weights_full = first_full;
    };
    // Weights do not depend on the kernel before: the first stages' are asked for at once.
    // By one thread, by elect, or ptxas wraps every copy in a loop over the lanes that might
    // differ.
    const int early = min(kNarrowEarlyStages, p.stages);
    if (has_weights && elected)
#pragma unroll 1
      for (int i = 0; i < min(early, all); ++i) copy_weights();
    // The copying warps of a chunk take turns with its inputs.
    const int turns = 4 >> p.chunks_log, eager = min(min(p.stages, own_steps), S::kEager);
    uint32_t full = first_full, to = first_inputs, phase = 1;
    int step = 0, stage = 0;  // step: in the chunk
    auto copy_stage = [&] {
      if (stage >= early) {
        if (stage >= p.stages) barrier_wait(full + 8, phase);
        if (has_weights) copy_weights();
      }
      if ((stage & (turns - 1)) == turn && stage >= eager) {
        if (step == own_steps) {
          barrier_arrive(full);
        } else {
          barrier_expect(full, S::kInputBytes);
#pragma unroll
          for (int run = 0; run < S::kRuns; ++run)
            tensor_copy_2d(to + run * S::kRunBytes, &inputs,
                           ((begin + step) * S::kRuns + run) * (128 / (S::kCodes ? 1 : 2)), 0,
                           full);
        }
      }
      if (++step == stages_of_pass) step = 0;
      full += 16, to += S::kInputBytes;
      if (full == end_full) full = first_full, to = first_inputs, phase ^= 1;
      ++stage;
    };
    wait_for_previous_kernel();
    {
      // This lane's 16 bytes of every fourth token; their place is swizzled by the token.
      const uint8_t* const x = p.x + min(lane / 8, p.m - 1) * p.x_row_bytes + lane % 8 * 16;
      const int rows = (p.m - lane / 8 + 3) / 4;
      const uint32_t place = lane / 8 * 128 + (lane % 8 ^ lane / 8) * 16;
#pragma unroll 1
      for (int i = turn; i < eager; i += turns) {
#pragma unroll
        for (int run = 0; run < S::kRuns; ++run) {
          const int column = ((begin + i) * S::kRuns + run) * 128;
          const int bytes = min(max(p.k_bytes - column - lane % 8 * 16, 0), 16);
          const uint8_t* row = bytes == 0 ? x : x + column;
          uint32_t row_to = first_inputs + i * S::kInputBytes + run * S::kRunBytes;
#pragma unroll 2
          for (int j = 0; j < rows; ++j, row += 4 * p.x_row_bytes, row_to += 512)
            copy_async_16(row_to + (place ^ j % 2 * 64), row, bytes);
        }
        copy_async_arrive(arrived + 8 * (chunk * p.stages + i));
      }
      if (elected)
#pragma unroll 1
        while (stage < min(p.stages, all)) copy_stage();
#pragma unroll 1
      for (int i = turn; i < eager; i += turns) {
        barrier_spin(arrived + 8 * (chunk * p.stages + i), 0);
        // Each thread's own writes, for the tensor cores.
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
        if (elected) barrier_arrive(first_full + 16 * i);
      }
    }
    if (!elected) return;
#pragma unroll 1
    while (stage < all) copy_stage();
    return;
  }
  take_registers<112>();

  // Of the block's slots, and of a half unit's rows.
  const int slot = S::kGroupUnits * turn + (kHalves == 2 ? warp % 4 : warp % 4 / 2);
  const int row_half = kHalves == 2 ? 0 : warp % 2;
  typename S::Product products[kTokens / 2];
  float sums[S::kGrouped ? S::kValues : 1];
  TileFragments<format, kHalves> fragments[S::kSets] = {};
  float scales[S::kSets][kHalves] = {};
  TileWords<format, kHalves> words;
  float token_scale[(kTokens + 31) / 32] = {};  // of tokens lane, lane + 32
  // Whether this warp has a unit, and where its scales lie in a stage behind its codes.
  bool works = false;
  int scales_at = 0;
  // The pair of stages that is multiplied now, its first barrier and that one's phase; in registers
  // of each thread, as uniform ones, which the compiler would take, come late to what waits for
  // them.
  struct Pair {
    uint64_t inputs;
    uint32_t weights, full, phase;
  };
  const Pair first_pair = {swizzled_operand(first_inputs), 0, first_full, 0};
  Pair now = first_pair;
  now.weights = per_thread(0);
  const uint8_t* const own_weights =
      first_weights + (slot - S::kGroupUnits * turn) * kUnitBytes + row_half * 512;

  auto load = [&](uint32_t weights, uint32_t full, uint32_t phase) {
    barrier_spin(full, phase);
    if (works)
      words.template load<0>(own_weights + weights, own_weights + weights + scales_at, lane);
  };
  auto unpack = [&](int set) {
    if (!works) return;
    fragments[set].template unpack<kZeroPoints>(words);
    if constexpr (S::kGrouped) {
      constexpr float kUnit = format == LinearFormat::kW4A8 ? kInt4Unit<kZeroPoints> : 1.0f;
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
        scales[set][half] = scale_of(words.scales[half]) * kUnit;
    }
  };
  // Sum `i` of this thread among those of the tensor cores.
  auto product_of = [](int i) { return kHalves == 2 ? i : i / 2 * 4 + i % 2; };
  auto step_of = [&](auto parity, uint64_t b, uint32_t empty, bool first, bool last,
                     uint32_t next_weights, uint32_t next_full, uint32_t next_phase) {
    constexpr int kSet = S::kSets == 2 ? decltype(parity)::value : 0;
    [[maybe_unused]] constexpr int kNext = S::kSets == 2 ? 1 - kSet : 0;
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < S::kMmas; ++i)
      multiply_add<format>(products, fragments[kSet].a[i],
                           b + i / 4 * (S::kRunBytes / 16) + i % 4 * 2,
                           i > 0 || (!S::kGrouped && !first));
    wgmma_commit();
    if (!last) {
      load(next_weights, next_full, next_phase);
      if constexpr (S::kSets == 2) unpack(kNext);
    }
    wgmma_wait<0>();
    // The whole warpgroup's products are done, and its words of that stage were loaded before.
    if (threadIdx.x % 128 == 0) barrier_arrive(empty);
    if constexpr (S::kGrouped) {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i)
        sums[i] = __fmaf_rn(scales[kSet][product_of(i) % 4 / 2],
                            static_cast<float>(products[product_of(i)]), sums[i]);
    }
    if constexpr (S::kSets == 1)
      if (!last) unpack(0);
  };

  // Where a lane's value lies in y: its token, its row of the weight.
  int unit = first_unit + slot;
  auto token_of = [&](int value) {
    const int i = product_of(value);
    return i / 4 * 8 + 2 * t + i % 2;
  };
  auto row_of = [&](int value) {
    return unit * kUnitRows + row_half * 8 + r + 8 * (product_of(value) % 4 / 2);
  };
  auto residual_of = [&](int value) {
    const int row = row_of(value), token = token_of(value);
    return works && row < p.n && token < p.m ? p.epilogue.residual_at(token, row) : 0.0f;
  };
  auto store = [&](uint32_t bits, int value, float residual) {
    const int row = row_of(value), token = token_of(value);
    float x_scale = 1;
    if constexpr (S::kCodes) {
      x_scale = __shfl_sync(0xffffffff, token_scale[0], token % 32);
      if constexpr (kTokens > 32) {
        const float upper = __shfl_sync(0xffffffff, token_scale[1], token % 32);
        if (token >= 32) x_scale = upper;
      }
    }
    if (!works || row >= p.n || token >= p.m) return;
    p.epilogue.store_scaled(
        scaled<format>(bits, row_scale_of<format>(p.weight, p.layout, row), x_scale), token, row,
        residual);
  };
  auto bits_of = [&](int value) {
    if constexpr (S::kGrouped)
      return __float_as_uint(sums[value]);
    else if constexpr (S::kInteger)
      return static_cast<uint32_t>(products[product_of(value)]);
    else
      return __float_as_uint(products[product_of(value)]);
  };

  for (int pass_unit = first_unit; pass_unit < end_unit; pass_unit += p.slots, unit += p.slots) {
    works = slot < p.slots && unit < end_unit;
    // As copied: the group's units' codes, then their scales.
    const int group_units = min(min(S::kGroupUnits, p.slots - S::kGroupUnits * turn),
                                end_unit - pass_unit - S::kGroupUnits * turn);
    const int in_group = slot - S::kGroupUnits * turn;
    scales_at =
        (group_units - in_group) * kUnitBytes + in_group * kUnitScaleBytes - row_half * (512 - 4);
    load(now.weights, now.full, now.phase);
    unpack(0);
    wait_for_previous_kernel();  // what others made besides x
#pragma unroll
    for (int i = 0; i < (kTokens + 31) / 32; ++i)
      if constexpr (S::kCodes)
        token_scale[i] = lane + 32 * i < p.m ? p.epilogue.x_scale[lane + 32 * i] : 0.0f;
    if constexpr (S::kGrouped) {
#pragma unroll
      for (int i = 0; i < S::kValues; ++i) sums[i] = 0;
    }
#pragma unroll 1
    for (int step = 0; step < own_steps; step += 2) {
      Pair next = {now.inputs + 2 * S::kInputBytes / 16, now.weights + 2 * weights_stride,
                   now.full + 32, now.phase};
      if (next.full == end_full) {
        next = first_pair;
        next.phase = now.phase ^ 1;
      }
      step_of(std::integral_constant<int, 0>{}, now.inputs, now.full + 8, step == 0,
              step + 1 == own_steps, now.weights + weights_stride, now.full + 16, now.phase);
      if (step + 1 < own_steps) {
        step_of(std::integral_constant<int, 1>{}, now.inputs + S::kInputBytes / 16, now.full + 24,
                false, step + 2 == own_steps, next.weights, next.full, next.phase);
      } else {
        barrier_spin(now.full + 16, now.phase);
        if (threadIdx.x % 128 == 0) barrier_arrive(now.full + 24);
      }
      now = next;
    }

    if (chunks == 1) {
      // Some asked for before the first is needed.
      constexpr int kBatch = std::min(S::kValues, 8);
#pragma unroll
      for (int first = 0; first < S::kValues; first += kBatch) {
        float residuals[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) residuals[i] = residual_of(first + i);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) store(bits_of(first + i), first + i, residuals[i]);
      }
      continue;
    }
    if (p.partial_bytes == 0) named_barrier(kNarrowBarrier, groups * 128);
    if (slot >= p.slots) continue;
    auto* const mine =
        reinterpret_cast<uint32_t*>(partials + ((slot * (2 / kHalves) + row_half) << p.chunks_log) *
                                                   S::kPartialBytes) +
        lane;
#pragma unroll
    for (int i = 0; i < S::kValues; ++i) mine[(chunk * S::kValues + i) * 32] = bits_of(i);
    // Of the first to be stored; asked for before others are waited for.
    float residual = residual_of(chunk);
    named_barrier(1 + slot * (2 / kHalves) + row_half, chunks * 32);
#pragma unroll 1
    for (int i = chunk; i < S::kValues; i += chunks) {
      uint32_t parts[kNarrowMostChunks];
#pragma unroll
      for (int c = 0; c < kNarrowMostChunks; ++c)
        if (c < chunks) parts[c] = mine[(c * S::kValues + i) * 32];
      const float added = residual;
      if (i + chunks < S::kValues) residual = residual_of(i + chunks);
#pragma unroll
      for (int c = 1; c < kNarrowMostChunks; ++c) {
        if (c >= chunks) continue;
        if constexpr (S::kExact)
          parts[0] += parts[c];
        else
          parts[0] =
              __float_as_uint(__fadd_rn(__uint_as_float(parts[0]), __uint_as_float(parts[c])));
      }
      store(parts[0], i, added);
    }
    // The next unit's partial sums shall not overwrite those that others still read.
    if (pass_unit + p.slots < end_unit)
      named_barrier(1 + slot * (2 / kHalves) + row_half, chunks * 32);
  }
}

template <LinearFormat format, int kTokens, int kHalves, bool kZeroPoints>
void launch_narrow(const LinearArgs& args, NarrowParams p, cudaStream_t stream) {
  using S = NarrowShape<format, kTokens, kHalves>;
  auto* kernel = narrow<format, kTokens, kHalves, kZeroPoints>;
  const int chunks = 1 << p.chunks_log, workers = p.slots * chunks;
  // Of a block that is once through K, all inputs have been multiplied when sums are exchanged:
  // these have room where two stages of inputs lie.
  const bool once = (p.block_units + (p.larger_blocks > 0 ? 1 : 0)) <= p.slots;
  p.partial_bytes = chunks == 1 || once ? 0 : workers * (2 / kHalves) * S::kPartialBytes;
  const int fixed = 1024 + p.partial_bytes;
  const int stage = chunks * (S::kInputBytes + 24) + workers * S::kWeightBytes;
  p.stages = std::clamp((kMostSharedBytes - fixed) / stage / 2 * 2, 2, 16);
  const int shared_bytes = fixed + p.stages * stage;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "shared memory of a linear");
  const int groups = (p.slots + S::kGroupUnits - 1) / S::kGroupUnits * chunks;
  launch_dependent(kernel, dim3(p.blocks), dim3(groups * 128 + 128), shared_bytes, stream, p,
                   input_map(args, kTokens));
}

template <LinearFormat format, int kTokens, bool kZeroPoints>
void launch_narrow(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream) {
  // Half the rows for each of twice as many warps, where there are no more units.
  if (p.slots << p.chunks_log <= kNarrowWarps / 2)
    launch_narrow<format, kTokens, 1, kZeroPoints>(args, p, stream);
  else
    launch_narrow<format, kTokens, 2, kZeroPoints>(args, p, stream);
}
template <LinearFormat format, bool kZeroPoints>
void launch_narrow(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream) {
  if (p.m <= 8)
    launch_narrow<format, 8, kZeroPoints>(args, p, stream);
  else if (p.m <= 16)
    launch_narrow<format, 16, kZeroPoints>(args, p, stream);
  else if (p.m <= 32)
    launch_narrow<format, 32, kZeroPoints>(args, p, stream);
  else if constexpr (!is_bf16(format))
    launch_narrow<format, 64, kZeroPoints>(args, p, stream);
}

void narrow_w4a8(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream);
void narrow_w4a8_two_level(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream);
void narrow_w4a16(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream);
void narrow_w4afp8(const LinearArgs& args, const NarrowParams& p, cudaStream_t stream);

}  // namespace whit::cuda
