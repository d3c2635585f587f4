// How decode attention on Hopper deals out its work: every chunk of every sequence and key/value
// head in a row, cut into equal runs. What a chunk's sums are does not depend on where the cuts
// are.
#pragma once

#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

constexpr int kRows = static_cast<int>(kDecodeRows);
constexpr int kKeys = static_cast<int>(kChunk);

// Chunks of a sequence that one block takes sooner than two blocks would merge them.
constexpr int kUndivided = 2;

// What a sequence's rows in this step are.
struct Sequence {
  int start, tokens, context, first_chunk, chunks;  // chunks: 0 where the other kernel has it
  __device__ __forceinline__ Sequence(const AttentionArgs& args, int index) {
    start = args.batch.query_start[index];
    tokens = args.batch.query_start[index + 1] - start;
    context = args.batch.context_len[index];
    const int group = static_cast<int>(args.heads / args.cache.kv_heads);
    const int window = static_cast<int>(args.sliding_window);
    first_chunk = window == 0 ? 0 : max(0, context - tokens - window + 1) / kKeys;
    chunks = tokens == 0 || tokens * group > kRows ? 0 : (context - 1) / kKeys - first_chunk + 1;
  }
};

// The chunks of all sequences and heads in a row, heads within sequences, and this block's run.
struct Run {
  int total, blocks;                     // chunks; blocks that share them
  int begin, left;                       // of this block
  int sequence, kv_head, chunk, chunks;  // the first one's, and how many its sequence has

  // Called by whole warps.
  __device__ __forceinline__ explicit Run(const AttentionArgs& args) {
    const int lane = threadIdx.x % 32;
    const int sequences = static_cast<int>(args.batch.b);
    const int kv_heads = static_cast<int>(args.cache.kv_heads);
    const auto chunks_of_lane = [&](int base) {
      return base + lane < sequences ? Sequence(args, base + lane).chunks : 0;
    };
    const int of_first = chunks_of_lane(0);
    total = __reduce_add_sync(0xffffffffu, of_first);
    int most = __reduce_max_sync(0xffffffffu, of_first);
#pragma unroll 1
    for (int base = 32; base < sequences; base += 32) {
      const int of_lane = chunks_of_lane(base);
      total += __reduce_add_sync(0xffffffffu, of_lane);
      most = max(most, __reduce_max_sync(0xffffffffu, of_lane));
    }
    total *= kv_heads;
    blocks = min(static_cast<int>(gridDim.x), most == kUndivided ? total / most : total);
    begin = left = sequence = kv_head = chunk = chunks = 0;
    if (static_cast<int>(blockIdx.x) >= blocks) return;
    begin = first_of(blockIdx.x);
    left = first_of(blockIdx.x + 1) - begin;
#pragma unroll 1
    for (int base = 0, before = 0; base < sequences; base += 32) {
      const int own = base == 0 ? of_first : chunks_of_lane(base);
      int upto = own;
#pragma unroll
      for (int offset = 1; offset < 32; offset *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, upto, offset);
        if (lane >= offset) upto += other;
      }
      const uint32_t past = __ballot_sync(0xffffffffu, before + upto * kv_heads > begin);
      if (past != 0) {
        const int found = __ffs(static_cast<int>(past)) - 1;
        sequence = base + found;
        chunks = __shfl_sync(0xffffffffu, own, found);
        const int place =
            begin - before - (__shfl_sync(0xffffffffu, upto, found) - chunks) * kv_heads;
        kv_head = place / chunks;
        chunk = place % chunks;
        return;
      }
      before += __shfl_sync(0xffffffffu, upto, 31) * kv_heads;
    }
  }
  // Spread evenly, so that equal sequences are cut alike and few blocks have parts of two.
  __device__ __forceinline__ int first_of(int block) const {
    return block * (total / blocks) + block * (total % blocks) / blocks;
  }
  __device__ __forceinline__ int block_of(int place) const {
    return static_cast<int>((int64_t{place + 1} * blocks - 1) / total);
  }
  // f(sequence, its index, head, first chunk, past the last one, place of chunk 0 in the row)
  template <typename F>
  __device__ __forceinline__ void for_each_piece(const AttentionArgs& args, F f) const {
    int remaining = left, index = sequence, head = kv_head, from = chunk, place = begin - chunk;
#pragma unroll 1
    while (remaining > 0) {
      const Sequence of(args, index);
#pragma unroll 1
      for (; remaining > 0 && of.chunks > 0 && head < args.cache.kv_heads; ++head) {
        const int to = min(of.chunks, from + remaining);
        f(of, index, head, from, to, place);
        remaining -= to - from;
        from = 0;
        place += of.chunks;
      }
      head = 0;
      ++index;
    }
  }
};

}  // namespace whit::cuda
