// What the attention kernels share: their sums, and pieces of them with mma m16n8k16 (bf16, f32
// sums) on 16 query rows.
//
// Of a chunk of 128 keys, with f = scale · log2 e:
//   s = q · k        over Dh, 16 at a time in ascending order
//   m = f · max s;   p = 2^(s · f − m), the difference rounded once
//   o = Σ bf16(p) · v                  over keys, 16 at a time in ascending order
//   l = Σ p          of keys ≡ 2c, 2c + 1 (mod 8), each 16 keys' four summed in pairs, then the
//                    sixteens in ascending order; then (c = 0 + 1) + (2 + 3)
// and chunks are merged in ascending order: M = max(M, m); O = O · 2^(M − M') + o · 2^(m − M').
// Every kernel makes these sums; that what an mma adds to its sum depends neither on the order of
// its 16 products nor on the instruction (mma, wgmma) is not documented: a test compares the bits.
//
// Codes of 8 bits are widened to bf16 (exactly) on their way to the tensor cores; a key's
// scale multiplies s, a value's scale multiplies p (not in l). In shared memory rows lie kPitch
// bytes apart, an odd number of 16-byte units, so that eight rows of one column lie in different
// banks.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/bf16.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/small_ops.h"

namespace whit::cuda {

constexpr float kLowest = -1e30f;  // a maximum of nothing; finite, so that no difference is NaN
constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies 16 bytes, or zeros where `valid` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int kLeft>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// (x & mask) | bits in one instruction: ptxas makes two of it where both are constants.
__device__ __forceinline__ uint32_t masked_or(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
  return y;
}

// Two codes in bytes 0 and 2 of x, whatever is in the others, as bf16: exact.
template <KvStorage storage>
__device__ __forceinline__ uint32_t widen(uint32_t x) {
  static_assert(storage != KvStorage::kBf16);
  uint32_t a, b;
  __nv_bfloat162 y;
  if constexpr (storage == KvStorage::kInt8) {
    // 128 + the low seven bits, less 128 or, for a negative number, 256.
    a = masked_or(x, 0x007f007fu, 0x43004300u), b = masked_or(x, 0x00800080u, 0x43004300u);
    y = __hsub2(reinterpret_cast<const __nv_bfloat162&>(a),
                reinterpret_cast<const __nv_bfloat162&>(b));
  } else {
    // e4m3's exponent, of bias 7, in the place of bf16's, of bias 127: 2¹²⁰ too small.
    a = masked_or(x << 4, 0x07f007f0u, x << 8 & 0x80008000u), b = 0x7b807b80u;
    y = __hmul2(reinterpret_cast<const __nv_bfloat162&>(a),
                reinterpret_cast<const __nv_bfloat162&>(b));
  }
  return reinterpret_cast<const uint32_t&>(y);
}

// The same of bytes 1 and 3.
template <KvStorage storage>
__device__ __forceinline__ uint32_t widen_odd(uint32_t x) {
  if constexpr (storage == KvStorage::kInt8) return widen<storage>(x >> 8);
  const uint32_t a = masked_or(x >> 4, 0x07f007f0u, x & 0x80008000u), b = 0x7b807b80u;
  const __nv_bfloat162 y = __hmul2(reinterpret_cast<const __nv_bfloat162&>(a),
                                   reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(y);
}

// 2^(s · factor − m)
__device__ __forceinline__ float probability(float s, float factor, float m) {
  return exp2_fast(fmaf(s, factor, -m));
}

// Over the four lanes that have a row's columns.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int D, KvStorage storage>
struct Tile {
  static constexpr bool kCoded = storage != KvStorage::kBf16;
  static constexpr int kPitch = (kCoded ? D : 2 * D) + 16;
  static constexpr int kUnits = (kCoded ? D : 2 * D) / 16;  // of 16 bytes a row
  static constexpr int kSteps = D / 16;

  // A fragments of 16 rows: `row(r)` points to the D (of them `dim` stored) bf16 of row r, or is
  // null for a row of zeros. Tiles of codes want the dimensions of a step in the order in which one
  // 32-bit load of a key gives them.
  template <typename Row>
  static __device__ __forceinline__ void load_queries(uint32_t (&q)[kSteps][4], int dim, Row row) {
    const int lane = threadIdx.x % 32;
    const __nv_bfloat16* rows[2] = {row(lane / 4), row(lane / 4 + 8)};
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int d = step * 16 + (kCoded ? lane % 4 * 4 + i / 2 * 2 : lane % 4 * 2 + i / 2 * 8);
        const __nv_bfloat16* base = rows[i % 2];
        q[step][i] = base != nullptr && d < dim ? *reinterpret_cast<const uint32_t*>(base + d) : 0;
      }
  }

  // s[2·i], s[2·i + 1] = q · keys 16·(first + i) … + 15 of the block at `keys`, not scaled. All
  // pairs of a step before the next step: the tensor cores answer after 30 clocks, and each sum
  // waits for itself alone.
  template <int kPairs>
  static __device__ __forceinline__ void scores(float (&s)[2 * kPairs][4],
                                                const uint32_t (&q)[kSteps][4],
                                                const unsigned char* keys, int first) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int tile = 0; tile < 2 * kPairs; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[tile][i] = 0;
    // bf16: matrices of keys 0…7 and 8…15 of a pair, each with dimensions 0…7 and 8…15 of the step.
    const unsigned char* word_at = keys + (16 * first + lane / 4) * kPitch + lane % 4 * 4;
    const uint32_t matrix_at =
        shared_address(keys) + (16 * first + lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        if constexpr (kCoded) {
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            const uint32_t word = *reinterpret_cast<const uint32_t*>(
                word_at + (16 * pair + 8 * tile) * kPitch + step * 16);
            mma_bf16(s[2 * pair + tile], q[step], widen<storage>(__byte_perm(word, 0, 0x4140)),
                     widen<storage>(__byte_perm(word, 0, 0x4342)));
          }
        } else {
          uint32_t b[4];
          load_matrices(b, matrix_at + 16 * pair * kPitch + step * 32);
          mma_bf16(s[2 * pair], q[step], b[0], b[1]);
          mma_bf16(s[2 * pair + 1], q[step], b[2], b[3]);
        }
      }
  }

  // acc[0…1] += p · values of output tiles 2·pair, 2·pair + 1 and keys 16·step … + 15.
  static __device__ __forceinline__ void accumulate(float (&acc0)[4], float (&acc1)[4],
                                                    const uint32_t (&p)[4],
                                                    const unsigned char* values, int step,
                                                    int pair) {
    const int lane = threadIdx.x % 32;
    if constexpr (kCoded) {
      // Output tile 4·g + j has the dimensions 32·g + 4·column + j, so that one word of a value
      // serves four tiles.
      const unsigned char* first =
          values + (16 * step + lane % 4 * 2) * kPitch + pair / 2 * 32 + lane / 4 * 4;
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = *reinterpret_cast<const uint32_t*>(first + (i / 2 * 8 + i % 2) * kPitch);
      if (pair % 2 == 0) {
        mma_bf16(acc0, p, widen<storage>(__byte_perm(words[0], words[1], 0x0400)),
                 widen<storage>(__byte_perm(words[2], words[3], 0x0400)));
        mma_bf16(acc1, p, widen<storage>(__byte_perm(words[0], words[1], 0x0501)),
                 widen<storage>(__byte_perm(words[2], words[3], 0x0501)));
      } else {
        mma_bf16(acc0, p, widen<storage>(__byte_perm(words[0], words[1], 0x0602)),
                 widen<storage>(__byte_perm(words[2], words[3], 0x0602)));
        mma_bf16(acc1, p, widen<storage>(__byte_perm(words[0], words[1], 0x0703)),
                 widen<storage>(__byte_perm(words[2], words[3], 0x0703)));
      }
    } else {
      uint32_t b[4];
      load_matrices_transposed(b, shared_address(values) + (16 * step + lane % 16) * kPitch +
                                      pair * 32 + lane / 16 * 16);
      mma_bf16(acc0, p, b[0], b[1]);
      mma_bf16(acc1, p, b[2], b[3]);
    }
  }

  // The dimension of accumulator i (0…3, of which i % 2 counts) of an output tile.
  static __device__ __forceinline__ int dimension(int tile, int i) {
    const int column = threadIdx.x % 4 * 2 + i % 2;
    return kCoded ? tile / 4 * 32 + column * 4 + tile % 4 : tile * 8 + column;
  }
};

// Whether a query at `position` sees a key.
__device__ __forceinline__ bool visible(int key, int position, int window) {
  return key <= position && (window == 0 || key > position - window);
}

// What a chunk adds to the sums over the chunks before it.
struct Merge {
  float before, chunk;
};
__device__ __forceinline__ Merge merge_factors(float before, float chunk, float both) {
  return {exp2_fast(before - both), exp2_fast(chunk - both)};
}
__device__ __forceinline__ float merge(float total, float chunk, const Merge& factors) {
  return fmaf(total, factors.before, chunk * factors.chunk);
}

// Of 32 chunks in a row, one a lane, behind others whose maximum `carry` is: the maximum before
// each and with it; carry becomes the last.
struct RunningMaximum {
  float before, with;
};
__device__ __forceinline__ RunningMaximum running_maximum(float own, float& carry) {
  const int lane = threadIdx.x % 32;
  float running = own;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const float other = __shfl_up_sync(0xffffffffu, running, offset);
    if (lane >= offset) running = fmaxf(running, other);
  }
  running = fmaxf(running, carry);
  float before = __shfl_up_sync(0xffffffffu, running, 1);
  if (lane == 0) before = carry;
  carry = __shfl_sync(0xffffffffu, running, 31);
  return {before, running};
}

// Index of a key's row in the cache, in tokens.
__device__ __forceinline__ int64_t cache_row(const AttentionArgs& args, const int32_t* pages,
                                             int kv_head, int key) {
  const auto page_tokens = static_cast<uint32_t>(args.cache.page_tokens);
  const uint32_t page = static_cast<uint32_t>(key) / page_tokens;
  const uint32_t offset = static_cast<uint32_t>(key) - page * page_tokens;
  return (int64_t{pages[page]} * args.cache.kv_heads + kv_head) * page_tokens + offset;
}

}  // namespace whit::cuda
