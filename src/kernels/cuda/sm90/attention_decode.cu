// Attention of sequences with few rows in this step, on Hopper: two persistent blocks an SM, chunks
// of all sequences and key/value heads dealt out in equal runs.
//
// A copier warp streams keys and values of the block's run through a ring of shared memory (about
// 95 KB in flight in each block; Hopper's memory is saturated by 40–56 an SM), pages by tensor maps
// that swizzle rows. Four warps share a chunk's keys for q·k and its output dimensions for p·v (mma
// m16n8k16), with the sums of attention.cuh. A run that is all of a sequence and head ends in its
// output. Of one that is divided, the first block stores what it has merged, the others each
// chunk's sums; when all have, each merges a part of the output in ascending order of chunks.
//
// Keys and values of earlier steps do not depend on the kernel before and are asked for ahead of
// it; the metadata was written before the step's first kernel.
//
// Bound: the bytes of keys and values.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sm90/attention_map.cuh"
#include "kernels/cuda/sm90/attention_merge.cuh"
#include "kernels/cuda/sm90/attention_run.cuh"
#include "kernels/cuda/sm90/attention_sm90.h"
#include "kernels/cuda/sm90/ptx_sm90.cuh"
#include "kernels/cuda/sm90/shared_memory.h"

namespace whit::cuda {
namespace {

constexpr int kWarpKeys = kKeys / kWarps;
// An odd number of 16-byte units: eight rows of one column lie in different banks.
constexpr int kProbabilityPitch = 2 * kKeys + 16;
constexpr int kMostStages = 12;

struct Control {
  alignas(16) unsigned char probabilities[kRows * kProbabilityPitch];
  alignas(16) float maxima[kRows][kWarps];
  float lengths[kKeys / 16][kRows * 4];  // of sixteen keys, by a quad's column
  alignas(8) uint64_t full[kMostStages], empty[kMostStages];
};

template <int D, KvStorage storage>
struct Shape {
  static constexpr bool kCoded = storage != KvStorage::kBf16;
  static constexpr int kRowBytes = kCoded ? D : 2 * D;
  // Swizzled columns of a tensor copy.
  static constexpr int kBoxBytes = std::min(kRowBytes, 128);
  static constexpr int kBoxes = kRowBytes / kBoxBytes;
  static constexpr int kUnits = kBoxBytes / 16;
  static constexpr int kDataBytes = kKeys * kRowBytes;  // of a chunk's keys, or values
  static constexpr int kScaleBytes = kCoded ? kKeys * 4 : 0;
  // Of a block's half a kilobyte goes for alignment.
  static constexpr int kMostBytes = kHalfSharedBytes - 1024 - static_cast<int>(sizeof(Control));
  static constexpr int kStages = std::min(kMostStages, kMostBytes / (kDataBytes + kScaleBytes));
  static constexpr int kSharedBytes =
      1024 + static_cast<int>(sizeof(Control)) + kStages * (kDataBytes + kScaleBytes);
  static constexpr int kSteps = D / 16;
  // Output dimensions of a warp, and the warps that have some.
  static constexpr int kOwnDims = std::max(16, D / kWarps);
  static constexpr int kPvWarps = D / kOwnDims;
  static_assert(kStages >= 3);

  // Where a 16-byte unit of a key lies in a stage.
  static __device__ __forceinline__ uint32_t unit_at(int key, int unit) {
    return unit / kUnits * (kKeys * kBoxBytes) + key * kBoxBytes +
           ((unit % kUnits) ^ (key * kBoxBytes / 128 % kUnits)) * 16;
  }
};

// Copies the run's keys and values into the ring: one warp, a lane of which finds a page's row.
template <int D, KvStorage storage>
__device__ __forceinline__ void copy_run(const AttentionArgs& args, const Run& run,
                                         const CUtensorMap* key_map, const CUtensorMap* value_map,
                                         int box_tokens, uint32_t data, uint32_t scales,
                                         uint32_t full, uint32_t empty) {
  using S = Shape<D, storage>;
  const int lane = threadIdx.x % 32;
  int stage = 0, phase = 1;
  bool waited = false;
  const auto page_tokens = static_cast<uint32_t>(args.cache.page_tokens);
  run.for_each_piece(args, [&](const Sequence& of, int index, int head, int from, int to, int) {
    const int32_t* pages = args.batch.block_table + index * args.batch.max_blocks;
#pragma unroll 1
    for (int chunk = from; chunk < to; ++chunk) {
      const int first = (of.first_chunk + chunk) * kKeys;
      const int boxes = (min(kKeys, of.context - first) + box_tokens - 1) / box_tokens;
      int row = 0;
      if (lane < boxes) {
        const auto key = static_cast<uint32_t>(first + lane * box_tokens);
        const uint32_t page = key / page_tokens;
        row = (pages[page] * static_cast<int>(args.cache.kv_heads) + head) *
                  static_cast<int>(page_tokens) +
              static_cast<int>(key - page * page_tokens);
      }
      if (!waited && first + kKeys > of.context - of.tokens) {
        wait_for_previous_kernel();
        waited = true;
      }
#pragma unroll 1
      for (int values = 0; values < 2; ++values) {
        const CUtensorMap* map = values == 0 ? key_map : value_map;
        const uint32_t barrier = full + 8 * stage;
        if (elect_one()) {
          barrier_spin(empty + 8 * stage, phase);
          barrier_expect(barrier, boxes * box_tokens * (S::kRowBytes + (S::kCoded ? 4 : 0)));
        }
        __syncwarp();
#pragma unroll 1
        for (int i = 0; i < boxes; ++i) {
          const int row_of = __shfl_sync(0xffffffffu, row, i);
          if (elect_one()) {
            const uint32_t to_data = data + stage * S::kDataBytes + i * box_tokens * S::kBoxBytes;
#pragma unroll
            for (int box = 0; box < S::kBoxes; ++box)
              tensor_copy_2d(to_data + box * kKeys * S::kBoxBytes, map,
                             box * S::kBoxBytes / (S::kCoded ? 1 : 2), row_of, barrier);
            if constexpr (S::kCoded)
              bulk_copy(scales + stage * S::kScaleBytes + i * box_tokens * 4,
                        (values == 0 ? args.cache.k_scales : args.cache.v_scales) + row_of,
                        box_tokens * 4, barrier);
          }
          __syncwarp();
        }
        if (++stage == S::kStages) stage = 0, phase ^= 1;
      }
    }
  });
}

__device__ __forceinline__ void load_matrices_transposed_2(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

// What a warp computes of a chunk: scores of 32 keys, and sums over all keys of its dimensions.
template <int D, KvStorage storage>
struct Computer {
  using S = Shape<D, storage>;
  static constexpr bool kCoded = S::kCoded;
  static constexpr int kTiles = S::kOwnDims / 8;
  using Queries = uint32_t[S::kSteps][4];

  // `row(r)` points to row r's queries or is null. Of codes, one word of a key has four dimensions
  // of a step: the first operand has the even ones of them, the second the odd ones.
  template <typename Row>
  static __device__ __forceinline__ void load_queries(Queries& q, int dim, int lane, Row row) {
    if constexpr (!kCoded) {
      Tile<D, storage>::load_queries(q, dim, row);
    } else {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const __nv_bfloat16* base = row(lane / 4 + 8 * half);
#pragma unroll
        for (int step = 0; step < S::kSteps; ++step) {
          const int d = step * 16 + lane % 4 * 4;
          uint32_t low = 0, high = 0;
          if (base != nullptr && d < dim) {
            low = *reinterpret_cast<const uint32_t*>(base + d);
            high = *reinterpret_cast<const uint32_t*>(base + d + 2);
          }
          q[step][half] = __byte_perm(low, high, 0x5410);
          q[step][2 + half] = __byte_perm(low, high, 0x7632);
        }
      }
    }
  }

  // s[tile] = q · keys 32·warp + 8·tile … + 7 of a stage.
  static __device__ __forceinline__ void scores(float (&s)[4][4], const Queries& q, uint32_t keys,
                                                int warp, int lane) {
#pragma unroll
    for (int tile = 0; tile < 4; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[tile][i] = 0;
    if constexpr (kCoded) {
      // One matrix is 16 dimensions of 8 keys; four matrices are kAcross steps of 4 / kAcross
      // tiles.
      constexpr int kAcross = std::min(4, S::kSteps);
#pragma unroll
      for (int step = 0; step < S::kSteps; step += kAcross)
#pragma unroll
        for (int tile = 0; tile < 4; tile += 4 / kAcross) {
          const int matrix = lane / 8;
          uint32_t words[4];
          load_matrices(
              words, keys + S::unit_at(kWarpKeys * warp + 8 * (tile + matrix / kAcross) + lane % 8,
                                       step + matrix % kAcross));
#pragma unroll
          for (int i = 0; i < 4; ++i)
            mma_bf16(s[tile + i / kAcross], q[step + i % kAcross], widen<storage>(words[i]),
                     widen_odd<storage>(words[i]));
        }
    } else {
#pragma unroll
      for (int step = 0; step < S::kSteps; ++step)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          uint32_t b[4];
          load_matrices(b,
                        keys + S::unit_at(kWarpKeys * warp + 16 * pair + lane / 16 * 8 + lane % 8,
                                          2 * step + lane / 8 % 2));
          mma_bf16(s[2 * pair], q[step], b[0], b[1]);
          mma_bf16(s[2 * pair + 1], q[step], b[2], b[3]);
        }
    }
  }

  // acc = p · the warp's dimensions of values. The next sixteen keys' operands are loaded while
  // these are multiplied.
  static __device__ __forceinline__ void weigh(float (&acc)[kTiles][4], uint32_t probabilities,
                                               uint32_t values, int warp, int lane) {
    constexpr int kWords = kTiles == 4 && !kCoded ? 8 : 4;
    const uint32_t p_at = probabilities + lane % 16 * kProbabilityPitch + lane / 16 * 16;
    uint32_t p[2][4], words[2][kWords];
    const auto load = [&](int step) {
      const int key = 16 * step + lane % 16;
      uint32_t(&to)[kWords] = words[step % 2];
      load_matrices(p[step % 2], p_at + step * 32);
      if constexpr (kCoded && kTiles == 4) {
        // A word has dimensions 2n and 2n + 1 of two keys; two words a unit of 16.
        load_matrices_transposed(to, values + S::unit_at(key, 2 * warp + lane / 16));
      } else if constexpr (kCoded) {
        load_matrices_transposed_2(to, values + S::unit_at(key, warp));
      } else {
#pragma unroll
        for (int pair = 0; pair < kTiles / 2; ++pair)
          load_matrices_transposed(
              reinterpret_cast<uint32_t(&)[4]>(to[4 * pair]),
              values + S::unit_at(key, S::kOwnDims / 8 * warp + 2 * pair + lane / 16));
      }
    };
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[tile][i] = 0;
    load(0);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      if (step + 1 < kKeys / 16) load(step + 1);
      const uint32_t(&from)[kWords] = words[step % 2];
#pragma unroll
      for (int pair = 0; pair < kTiles / 2; ++pair) {
        if constexpr (kCoded) {
          mma_bf16(acc[2 * pair], p[step % 2], widen<storage>(from[2 * pair]),
                   widen<storage>(from[2 * pair + 1]));
          mma_bf16(acc[2 * pair + 1], p[step % 2], widen_odd<storage>(from[2 * pair]),
                   widen_odd<storage>(from[2 * pair + 1]));
        } else {
          mma_bf16(acc[2 * pair], p[step % 2], from[4 * pair], from[4 * pair + 1]);
          mma_bf16(acc[2 * pair + 1], p[step % 2], from[4 * pair + 2], from[4 * pair + 3]);
        }
      }
    }
  }

  // f(half, first of two neighbouring dimensions, their values)
  template <typename F>
  static __device__ __forceinline__ void for_each_pair(const float (&acc)[kTiles][4], int warp,
                                                       int lane, F f) {
    const int first = S::kOwnDims * warp;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        if constexpr (kCoded)
          f(half, first + j / 2 * 16 + lane % 4 * 4 + j % 2 * 2, acc[j / 2 * 2][2 * half + j % 2],
            acc[j / 2 * 2 + 1][2 * half + j % 2]);
        else
          f(half, first + 8 * j + lane % 4 * 2, acc[j][2 * half], acc[j][2 * half + 1]);
      }
  }
};

// kHalves: of the tile's 16 rows, that any sequence has.
template <int D, KvStorage storage, int kHalves>
__global__ void __launch_bounds__(kThreads + 32, 2)
    decode_kernel(const __grid_constant__ AttentionArgs args,
                  const __grid_constant__ CUtensorMap key_map,
                  const __grid_constant__ CUtensorMap value_map, int box_tokens) {
  using S = Shape<D, storage>;
  using C = Computer<D, storage>;
  constexpr bool kCoded = S::kCoded;
  constexpr int kTiles = C::kTiles;
  extern __shared__ unsigned char unaligned[];
  // The swizzle is of address bits: stages begin at multiples of 1024.
  unsigned char* const ring = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  const uint32_t data = shared_address(ring);
  const auto* scale_ring = reinterpret_cast<const float*>(ring + S::kStages * S::kDataBytes);
  auto& control = *reinterpret_cast<Control*>(ring + S::kStages * (S::kDataBytes + S::kScaleBytes));
  const uint32_t full = shared_address(control.full), empty = shared_address(control.empty);
  const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barrier_init(full + 8 * stage, 1);
      barrier_init(empty + 8 * stage, kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  if (threadIdx.x == 32) prefetch_map(&key_map);
  if (threadIdx.x == 64) prefetch_map(&value_map);
  const Run run(args);
  __syncthreads();
  let_next_kernel_launch();

  if (warp == kWarps) {
    copy_run<D, storage>(args, run, &key_map, &value_map, box_tokens, data,
                         shared_address(scale_ring), full, empty);
    return;
  }

  // Arguments come from memory too, once for each line of theirs.
  asm volatile("" ::"l"(args.q), "l"(args.q_stride), "l"(args.out), "l"(args.out_stride),
               "l"(args.partials), "f"(args.scale), "l"(args.cache.head_dim));
  wait_for_previous_kernel();
  const int group = static_cast<int>(args.heads / args.cache.kv_heads);
  const int dim = static_cast<int>(args.cache.head_dim);
  const int window = static_cast<int>(args.sliding_window);
  const float factor = args.scale * kLog2E;
  const int row0 = lane / 4, column = lane % 4;
  int stage = 0, phase = 0;
  const auto advance = [&] {
    if (++stage == S::kStages) stage = 0, phase ^= 1;
  };
  bool divided = false;

  run.for_each_piece(args, [&](const Sequence& of, int index, int head, int from, int to, int) {
    const int rows = of.tokens * group, first_position = of.context - of.tokens;
    typename C::Queries q;
    C::load_queries(q, dim, lane, [&](int row) -> const __nv_bfloat16* {
      if (row >= rows) return nullptr;
      return static_cast<const __nv_bfloat16*>(args.q) + (of.start + row / group) * args.q_stride +
             (head * group + row % group) * dim;
    });
    const Partials<D> partials(args, index, head);
    int position[kHalves];
    float total[kTiles][4], total_m[kHalves], total_length[kHalves];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      position[half] = first_position + (row0 + 8 * half) / group;
      total_m[half] = kLowest;
      total_length[half] = 0;
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) total[tile][i] = 0;
    const auto store_partials = [&](int slot, const float(&sums)[kTiles][4],
                                    const float(&m)[kHalves], const float(&length)[kHalves]) {
      float* to_sums = partials.sums + int64_t{slot} * kRows * D;
      if (warp < S::kPvWarps)
        C::for_each_pair(sums, warp, lane, [&](int half, int d, float x, float y) {
          const int row = row0 + 8 * half;
          if (half < kHalves && row < rows)
            __stcg(reinterpret_cast<float2*>(to_sums + row * D + d), make_float2(x, y));
        });
      if (warp == 0 && column == 0) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
          if (row0 + 8 * half < rows)
            __stcg(partials.states + int64_t{slot} * kRows + row0 + 8 * half,
                   make_float2(m[half], length[half]));
      }
    };

#pragma unroll 1
    for (int chunk = from; chunk < to; ++chunk) {
      const int first_key = (of.first_chunk + chunk) * kKeys;
      const int valid = min(kKeys, of.context - first_key);  // keys past them are not to be read
      const int own_key = kWarpKeys * warp + 2 * column;

      // Warp w: keys 32·w … 32·w + 31.
      barrier_spin(full + 8 * stage, phase);
      float s[4][4];
      C::scores(s, q, data + stage * S::kDataBytes, warp, lane);
      if constexpr (kCoded) {
        const float* scales = scale_ring + stage * kKeys + own_key;
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          const float2 pair = *reinterpret_cast<const float2*>(scales + 8 * tile);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            s[tile][2 * half] *= pair.x;
            s[tile][2 * half + 1] *= pair.y;
          }
        }
      }
      if (first_key + kKeys - 1 > first_position || window != 0) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half)
#pragma unroll
          for (int tile = 0; tile < 4; ++tile)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int at = own_key + 8 * tile + i;
              if (at >= valid || !visible(first_key + at, position[half], window))
                s[tile][2 * half + i] = -INFINITY;
            }
      }
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        float largest = kLowest;
#pragma unroll
        for (int tile = 0; tile < 4; ++tile)
          largest = fmaxf(largest, fmaxf(s[tile][2 * half], s[tile][2 * half + 1]));
        largest = quad_max(largest);
        if (column == 0) control.maxima[row0 + 8 * half][warp] = largest;
      }
      if (lane == 0) barrier_arrive(empty + 8 * stage);
      advance();
      consumers_sync();

      if constexpr (kCoded) barrier_spin(full + 8 * stage, phase);
      float m[kHalves];
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        const int row = row0 + 8 * half;
        const float4 four = *reinterpret_cast<const float4*>(control.maxima[row]);
        m[half] = fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)) * factor;
        float sums[4];
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
          float p0 = probability(s[tile][2 * half], factor, m[half]);
          float p1 = probability(s[tile][2 * half + 1], factor, m[half]);
          sums[tile] = p0 + p1;
          const int at = own_key + 8 * tile;
          if constexpr (kCoded) {
            const float2 pair = *reinterpret_cast<const float2*>(scale_ring + stage * kKeys + at);
            // What lies past the context may not be numbers.
            p0 = at < valid ? p0 * pair.x : 0.0f;
            p1 = at + 1 < valid ? p1 * pair.y : 0.0f;
          }
          *reinterpret_cast<uint32_t*>(control.probabilities + row * kProbabilityPitch + 2 * at) =
              pack_bf16(p0, p1);
        }
        control.lengths[2 * warp][row * 4 + column] = sums[0] + sums[1];
        control.lengths[2 * warp + 1][row * 4 + column] = sums[2] + sums[3];
      }
      if constexpr (!kCoded) barrier_spin(full + 8 * stage, phase);
      const uint32_t values = data + stage * S::kDataBytes;
      if (valid < kKeys && warp < S::kPvWarps) {
        // Here neither; each warp's own dimensions.
        constexpr int kOwnUnits = S::kOwnDims / (kCoded ? 16 : 8);
#pragma unroll 1
        for (int i = lane; i < (kKeys - valid) * kOwnUnits; i += 32)
          *reinterpret_cast<uint4*>(
              ring + (values - data) +
              S::unit_at(valid + i / kOwnUnits, kOwnUnits * warp + i % kOwnUnits)) = {};
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncwarp();
      }
      consumers_sync();

      float acc[kTiles][4], length[kHalves];
      if (warp < S::kPvWarps)
        C::weigh(acc, shared_address(control.probabilities), values, warp, lane);
      if (lane == 0) barrier_arrive(empty + 8 * stage);
      advance();
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
        length[half] = 0;
#pragma unroll
        for (int sixteen = 0; sixteen < kKeys / 16; ++sixteen)
          length[half] += control.lengths[sixteen][(row0 + 8 * half) * 4 + column];
        length[half] = quad_sum(length[half]);
      }
      if (from == 0) {
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const float more = fmaxf(total_m[half], m[half]);
          const Merge by = merge_factors(total_m[half], m[half], more);
          total_m[half] = more;
          total_length[half] = merge(total_length[half], length[half], by);
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i)
              total[tile][i] = merge(total[tile][i], acc[tile][i], by);
        }
      } else {
        store_partials(chunk, acc, m, length);
      }
    }

    if (from == 0 && to == of.chunks) {
      if (warp < S::kPvWarps)
        C::for_each_pair(total, warp, lane, [&](int half, int d, float x, float y) {
          const int row = row0 + 8 * half;
          if (half >= kHalves || row >= rows || d >= dim) return;
          const float sum = total_length[half % kHalves];
          const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
          auto* out = static_cast<__nv_bfloat16*>(args.out) +
                      (of.start + row / group) * args.out_stride +
                      (head * group + row % group) * dim + d;
          *reinterpret_cast<uint32_t*>(out) = pack_bf16(x * inverse, y * inverse);
        });
      return;
    }
    if (from == 0) store_partials(0, total, total_m, total_length);
    divided = true;
    // The barrier and the release together order all threads' stores before the arrival.
    consumers_sync();
    if (threadIdx.x == 0) add_release(args.counters + index * args.cache.kv_heads + head);
  });
  if (!divided) return;
  // All blocks of the grid run at once, so that those waited for do not wait for an SM.
  run.for_each_piece(args,
                     [&](const Sequence& of, int index, int head, int from, int to, int place) {
                       if (from == 0 && to == of.chunks) return;
                       merge_part<D>(args, of, index, head, place, run);
                     });
}

// As many blocks as run at once, or a number that leaves few SMs, or few places on them, idle and
// divides no sequence, or each into as many parts: memory is the bound, and a block that has parts
// of two sequences waits for, and merges, both.
int grid_of(const AttentionArgs& args, int sms, int blocks_of_sm) {
  const auto pairs = static_cast<int>(args.batch.b * args.cache.kv_heads);
  const int places = sms * blocks_of_sm;
  for (const int most : {places, sms}) {
    // One block is slower than memory where codes are widened.
    if (most < places && args.cache.storage != KvStorage::kBf16) break;
    const int each = (pairs + most - 1) / most;
    const int even = (pairs + each - 1) / each;
    if (even * 16 >= most * 15) return even;
  }
  const auto parts = static_cast<int>(std::min<int64_t>(places / pairs, args.max_chunks));
  if (parts * pairs * 16 >= places * 15) return parts * pairs;
  return static_cast<int>(std::min<int64_t>(places, pairs * args.max_chunks));
}

template <int D, KvStorage storage, int kHalves>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  using S = Shape<D, storage>;
  struct Places {
    int sms = 0, blocks_of_sm = 0;
  };
  static const Places places = [] {
    Places found;
    int device = 0;
    auto* kernel = decode_kernel<D, storage, kHalves>;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&found.sms, cudaDevAttrMultiProcessorCount, device),
          "number of SMs");
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "asking for shared memory");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&found.blocks_of_sm, kernel, kThreads + 32,
                                                        S::kSharedBytes),
          "blocks of an SM");
    return found;
  }();
  const int box_tokens = cache_box_tokens(args.cache);
  constexpr int kColumns = S::kBoxBytes / (S::kCoded ? 1 : 2);
  launch_dependent(decode_kernel<D, storage, kHalves>,
                   dim3(static_cast<unsigned>(grid_of(args, places.sms, places.blocks_of_sm))),
                   dim3(kThreads + 32), S::kSharedBytes, stream, args,
                   // Promoting to 256 bytes, which suits prefill, costs 6 % here (H200, batch 64).
                   cache_map(args.cache.k, S::kCoded, args.cache.head_dim, kColumns, box_tokens,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_64B),
                   cache_map(args.cache.v, S::kCoded, args.cache.head_dim, kColumns, box_tokens,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_64B),
                   box_tokens);
}

template <KvStorage storage, int kHalves>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  if (args.cache.head_dim <= 32)
    launch_decode<32, storage, kHalves>(args, stream);
  else if (args.cache.head_dim <= 64)
    launch_decode<64, storage, kHalves>(args, stream);
  else
    launch_decode<128, storage, kHalves>(args, stream);
}

template <KvStorage storage>
void launch_decode(const AttentionArgs& args, cudaStream_t stream) {
  // One token each?
  if (args.batch.t <= args.batch.b && args.heads <= 8 * args.cache.kv_heads)
    launch_decode<storage, 1>(args, stream);
  else
    launch_decode<storage, 2>(args, stream);
}

}  // namespace

void attention_decode_sm90(const AttentionArgs& args, cudaStream_t stream) {
  with_storage(args.cache.storage, [&](auto storage) { launch_decode<storage()>(args, stream); });
}

}  // namespace whit::cuda
