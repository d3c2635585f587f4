// The end of decode attention on Hopper: merging the chunks of a sequence and head that several
// blocks have computed.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/sm90/attention_run.cuh"

namespace whit::cuda {

constexpr int kWarps = 4;  // that compute
constexpr int kThreads = 32 * kWarps;
// Of a merge: slots, vectors of four sums and rows' factors at a time; vectors of a pass.
constexpr int kMergeSlots = 256, kMergeVectors = 1024, kMergeFactors = 2048;
constexpr int kPassVectors = kThreads / 4;
constexpr int kMergeBytes = kMergeVectors * 16 + kMergeFactors * 12 + kRows * 4;

__device__ __forceinline__ void consumers_sync() { named_barrier(1, kThreads); }

__device__ __forceinline__ int load_acquire(const int32_t* p) {
  int value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
__device__ __forceinline__ void add_release(int32_t* p) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(p) : "memory");
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
// one's chunks are merged already, in slot 0.
template <int D>
__device__ __forceinline__ void merge_part(const AttentionArgs& args, const Sequence& of,
                                           int sequence, int kv_head, int place, const Run& run,
                                           unsigned char* memory) {
  constexpr int kRowVectors = D / 4;
  auto* values = reinterpret_cast<float4*>(memory);
  auto* factors = reinterpret_cast<Merge*>(values + kMergeVectors);
  auto* lengths = reinterpret_cast<float*>(factors + kMergeFactors);
  auto* carries = lengths + kMergeFactors;  // maxima of the slots before, by row
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  const int first_block = run.block_of(place), last_block = run.block_of(place + of.chunks - 1);
  const int count = last_block - first_block + 1, part = blockIdx.x - first_block;
  const int merged = run.first_of(first_block + 1) - place;  // chunks in slot 0
  const int slots = of.chunks - merged + 1;
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int vectors = of.tokens * group * kRowVectors;
  const int end = (part + 1) * vectors / count;
  const Partials<D> partials(args, sequence, kv_head);
  int32_t* counter = args.counters + sequence * args.cache.kv_heads + kv_head;
  if (thread == 0)
    while (load_acquire(counter) < count) {
    }
  consumers_sync();

#pragma unroll 1
  for (int begin = part * vectors / count; begin < end; begin += kPassVectors) {
    const int own = min(kPassVectors, end - begin);
    const int first_row = begin / kRowVectors;
    const int own_rows = (begin + own - 1) / kRowVectors - first_row + 1;
    const int most = min(kMergeSlots, min(kMergeVectors / own, kMergeFactors / own_rows));
    // Threads load `step` slots at a time, and merge a value each.
    const int step = kThreads / own, own_slot = thread / own, own_vector = thread - own_slot * own;
    const int row = (begin + thread / 4) / kRowVectors;
    const int d = (begin + thread / 4) % kRowVectors * 4 + thread % 4;
    float total = 0, length = 0;
    if (thread < own_rows) carries[thread] = kLowest;
    consumers_sync();
#pragma unroll 1
    for (int base = 0; base < slots; base += most) {
      const int here = min(most, slots - base);
      const auto slot = [&](int i) { return base + i == 0 ? 0 : merged + base + i - 1; };
      if (own_slot < step) {
#pragma unroll 8
        for (int i = own_slot; i < here; i += step)
          values[i * own + own_vector] =
              __ldcg(reinterpret_cast<const float4*>(partials.sums) +
                     int64_t{slot(i)} * kRows * kRowVectors + begin + own_vector);
      }
#pragma unroll 1
      for (int i = thread; i < here * own_rows; i += kThreads) {
        const int r = i / here, at = i - r * here;
        const float2 state = __ldcg(partials.states + int64_t{slot(at)} * kRows + first_row + r);
        factors[i] = {state.x, 0};
        lengths[i] = state.y;
      }
      consumers_sync();
#pragma unroll 1
      for (int r = warp; r < own_rows; r += kWarps) {
        float carry = carries[r];
#pragma unroll 1
        for (int i = lane; i < here + lane; i += 32) {
          const float m = i < here ? factors[r * here + i].before : kLowest;
          const auto [before, running] = running_maximum(m, carry);
          if (i < here) factors[r * here + i] = merge_factors(before, m, running);
        }
        __syncwarp();
        if (lane == 0) carries[r] = carry;
      }
      consumers_sync();
      if (thread < 4 * own) {
        const int first = (row - first_row) * here;
        const float* value = reinterpret_cast<const float*>(values) + thread;
#pragma unroll 4
        for (int i = 0; i < here; ++i) {
          const Merge by = factors[first + i];
          length = merge(length, lengths[first + i], by);
          total = merge(total, value[i * own * 4], by);
        }
      }
      consumers_sync();
    }
    if (thread < 4 * own && d < dim) {
      const float inverse = length > 0 ? 1.0f / length : 0.0f;
      static_cast<__nv_bfloat16*>(args.out)[(of.start + row / group) * args.out_stride +
                                            (kv_head * group + row % group) * dim + d] =
          __float2bfloat16_rn(total * inverse);
    }
  }
  // All have arrived once more when nobody needs the counter.
  if (thread == 0 && atomicAdd(counter, 1) == 2 * count - 1) *counter = 0;
}

}  // namespace whit::cuda
