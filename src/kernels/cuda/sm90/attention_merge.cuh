// The end of decode attention on Hopper: merging the chunks of a sequence and head that several
// blocks have computed.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/sm90/attention_run.cuh"

namespace whit::cuda {

constexpr int kWarps = 4;  // that compute
constexpr int kThreads = 32 * kWarps;

__device__ __forceinline__ void consumers_sync() { named_barrier(1, kThreads); }

__device__ __forceinline__ int load_acquire(const int32_t* p) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ __forceinline__ void add_release(int32_t* p) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(p) : "memory");
}

// Past L1, and where it is written: the compiler moves no load to its use.
__device__ __forceinline__ float load_at_once(const float* p) {
  float value;
  asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(value) : "l"(p) : "memory");
  return value;
}

// Partial sums: [slot][row][D], then [slot][row] maximum and length; a slot for each chunk.
template <int D>
struct Partials {
  float* sums;
  float2* states;
  __device__ __forceinline__ Partials(const AttentionArgs& args, int sequence, int kv_head) {
    const int64_t slots = args.cache.kv_heads * args.max_chunks;
    const int64_t first = sequence * slots + kv_head * args.max_chunks;
    sums = args.partials + first * kRows * D;
    states =
        reinterpret_cast<float2*>(args.partials + args.batch.b * slots * kRows * D) + first * kRows;
  }
};

// This block's part of the output of a sequence and head that several have computed; the first
// one's chunks are merged already, in slot 0. A warp takes 32 sums of a row, a lane each, and 32
// slots at a time: what a lane then waits for, values and states, is asked for at once.
template <int D>
__device__ __forceinline__ void merge_part(const AttentionArgs& args, const Sequence& of,
                                           int sequence, int kv_head, int place, const Run& run) {
  constexpr int kSlots = 32, kRowTasks = D / 32;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_block = run.block_of(place), last_block = run.block_of(place + of.chunks - 1);
  const int count = last_block - first_block + 1, part = blockIdx.x - first_block;
  const int merged = run.first_of(first_block + 1) - place;  // chunks in slot 0
  const int slots = of.chunks - merged + 1;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int tasks = of.tokens * group * kRowTasks;
  if (part >= tasks) return;
  const Partials<D> partials(args, sequence, kv_head);
  int32_t* counter = args.counters + sequence * args.cache.kv_heads + kv_head;
  if (threadIdx.x == 0) {
    while (load_acquire(counter) < count) {
    }
    // Who waits has arrived once more when nobody needs the counter.
    if (atomicAdd(counter, 1) == count + min(count, tasks) - 1) *counter = 0;
  }
  consumers_sync();

#pragma unroll 1
  for (int task = part + warp * count; task < tasks; task += kWarps * count) {
    const int row = task / kRowTasks, d = task % kRowTasks * 32 + lane;
    float total = 0, length = 0, carry = kLowest;
#pragma unroll 1
    for (int base = 0; base < slots; base += kSlots) {
      const auto slot = [&](int i) {
        const int at = min(base + i, slots - 1);
        return at == 0 ? 0 : merged + at - 1;
      };
      float values[kSlots];
#pragma unroll
      for (int i = 0; i < kSlots; ++i)
        values[i] = load_at_once(partials.sums + (int64_t{slot(i)} * kRows + row) * D + d);
      float2 state = __ldcg(partials.states + int64_t{slot(lane)} * kRows + row);
      // Slots past the last change nothing.
      if (base + lane >= slots) state = {kLowest, 0};
      const auto [before, running] = running_maximum(state.x, carry);
      const Merge by = merge_factors(before, state.x, running);
#pragma unroll
      for (int i = 0; i < kSlots; ++i) {
        const Merge of_slot = {__shfl_sync(0xffffffffu, by.before, i),
                               __shfl_sync(0xffffffffu, by.chunk, i)};
        const float longer = merge(length, __shfl_sync(0xffffffffu, state.y, i), of_slot);
        const float more = merge(total, values[i], of_slot);
        // No branch: 32 slots at once.
        length = base + i < slots ? longer : length;
        total = base + i < slots ? more : total;
      }
    }
    if (d < dim) {
      const float inverse = length > 0 ? 1.0f / length : 0.0f;
      static_cast<__nv_bfloat16*>(args.out)[(of.start + row / group) * args.out_stride +
                                            (kv_head * group + row % group) * dim + d] =
          __float2bfloat16_rn(total * inverse);
    }
  }
}

}  // namespace whit::cuda
