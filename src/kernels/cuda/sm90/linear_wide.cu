#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_unpack.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sm90/linear_wide.h"
#include "kernels/cuda/sm90/ptx_sm90.cuh"

namespace whit::cuda {
namespace {

constexpr int kStepK = 128;    // of K a pipeline stage, one swizzled row and one scale group
constexpr int kConsumers = 2;  // warpgroups, of 64 rows each
constexpr int kMostParts = 4;  // of k_chunks
constexpr int kThreads = 128 * (kConsumers + 1);
// Floats between the rows of staged sums: 4 more than a tile's 64 rows, so that the writes of a
// warp (8 rows × 4 columns, 2 apart) fall into 32 banks.
constexpr int kStagePitch = kTileRows + 4;

struct Params {
  const uint8_t* weight;
  TileLayout layout;
  Epilogue epilogue;
  int m, n;
  int steps;        // along K
  int chunks;       // of K
  int parts;        // blocks of a cluster that share K: 1 or chunks
  int token_tiles;  // fastest, so that neighbours share weights
  int tiles;
  bool vectors;  // whether rows of y and of the residual can be moved in 16-byte vectors
};

template <LinearFormat format, int kTokens>
struct Shape {
  static constexpr bool kInt4 = format == LinearFormat::kW4A8;
  // Bytes of a warpgroup's weights in a stage: a tile of 4 bits and its scales, two of 8 bits.
  static constexpr int kWeightBytes = kInt4 ? 4 * kUnitBytes + kTileRows * 4 : 8 * kUnitBytes;
  static constexpr int kInputBytes = kTokens * kStepK;
  static constexpr int kStageBytes = (kInputBytes + kConsumers * kWeightBytes + 1023) / 1024 * 1024;
  static constexpr int kSumBytes = kTokens * kStagePitch * 4;  // of one warpgroup
  // As many stages as fit in 227 KB beside the sums, 1 KB of barriers and 1 KB of alignment.
  static constexpr int kStages =
      std::min(8, (232448 - 2048 - kConsumers * kSumBytes) / kStageBytes);
  static constexpr int kSharedBytes = 2048 + kStages * kStageBytes + kConsumers * kSumBytes;
  static constexpr int kAccumulators = kTokens / 2;
};

// A warp's 16 rows × 128 of K as four A fragments.
struct Fragments {
  uint32_t a[4][4];
  float scale[2];  // of rows r and r + 8
};

template <LinearFormat format, bool kZeroPoints>
__device__ __forceinline__ void load_fragments(const uint8_t* weights, int warp, int lane,
                                               Fragments& out) {
  // [half of rows][16 of 32 of K] → words jj
  uint2 words[2][2];
  if constexpr (format == LinearFormat::kW4A8) {
    const uint8_t* unit = weights + warp * kUnitBytes + lane * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        words[half][h] = *reinterpret_cast<const uint2*>(unit + half * 512 + h * 256);
    const uint2 scales =
        *reinterpret_cast<const uint2*>(weights + 4 * kUnitBytes + warp * 64 + lane / 4 * 8);
    const uint32_t zeros[2] = {zero_bytes_of(scales.x), zero_bytes_of(scales.y)};
    out.scale[0] = scale_of(scales.x) * kInt4Unit<kZeroPoints>;
    out.scale[1] = scale_of(scales.y) * kInt4Unit<kZeroPoints>;
#pragma unroll
    for (int step = 0; step < 4; ++step)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          out.a[step][2 * h + half] = int8_of_nibbles<kZeroPoints>(
              step % 2 == 0 ? words[half][h].x : words[half][h].y, step / 2, zeros[half]);
  } else {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const uint8_t* unit = weights + tile * 4 * kUnitBytes + warp * kUnitBytes + lane * 8;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          words[half][h] = *reinterpret_cast<const uint2*>(unit + half * 512 + h * 256);
          out.a[2 * tile][2 * h + half] = words[half][h].x;
          out.a[2 * tile + 1][2 * h + half] = words[half][h].y;
        }
    }
  }
}

template <LinearFormat format, int kTokens, bool kZeroPoints>
__global__ void __launch_bounds__(kThreads, 1)
    wide(const __grid_constant__ Params p, const __grid_constant__ CUtensorMap inputs) {
  using S = Shape<format, kTokens>;
  constexpr bool kExact = format == LinearFormat::kW8A8;
  extern __shared__ uint8_t unaligned[];
  // The swizzle is of address bits: stages begin at multiples of 1024.
  uint8_t* const stages = unaligned + (1024 - shared_address(unaligned) % 1024) % 1024;
  float* const all_sums = reinterpret_cast<float*>(stages + S::kStages * S::kStageBytes);
  const uint32_t barriers = shared_address(all_sums) + kConsumers * S::kSumBytes;
  auto full = [&](int stage) { return barriers + stage * 16; };
  auto empty = [&](int stage) { return barriers + stage * 16 + 8; };

  const int group = threadIdx.x / 128;
  const int part = p.parts == 1 ? 0 : blockIdx.x % p.parts;
  const int first_tile = blockIdx.x / p.parts, tile_step = gridDim.x / p.parts;
  const int step_begin = p.parts == 1 ? 0 : part * p.steps / p.chunks;
  const int step_end = p.parts == 1 ? p.steps : (part + 1) * p.steps / p.chunks;

  if (threadIdx.x == 0) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      barrier_init(full(stage), 1);
      barrier_init(empty(stage), kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
  }
  __syncthreads();
  let_next_kernel_launch();

  if (group == kConsumers) {
    give_registers<40>();
    if (threadIdx.x == kConsumers * 128) {
      auto weights = [&](int tile, int step, int stage) {
        const uint32_t to = shared_address(stages) + stage * S::kStageBytes + S::kInputBytes;
        barrier_expect(full(stage), S::kInputBytes + kConsumers * S::kWeightBytes);
#pragma unroll
        for (int c = 0; c < kConsumers; ++c) {
          // Past the last row block: the last again, whose result is not stored.
          const int block = min(tile / p.token_tiles * kConsumers + c, p.layout.row_blocks - 1);
          const uint8_t* from = p.weight + block * p.layout.block_bytes();
          const int last = p.layout.tiles - 2 * step;
          if constexpr (S::kInt4) {
            bulk_copy(to + c * S::kWeightBytes, from + int64_t{step} * p.layout.tile_bytes,
                      S::kWeightBytes, full(stage));
          } else {
            // An odd last tile of 64 is followed by the next row block or by scales: finite bytes
            // whose inputs are zero.
            bulk_copy(to + c * S::kWeightBytes, from + int64_t{2 * step} * p.layout.tile_bytes,
                      last == 1 ? S::kWeightBytes / 2 : S::kWeightBytes, full(stage));
            if (last == 1)
              bulk_copy(to + c * S::kWeightBytes + S::kWeightBytes / 2,
                        from + int64_t{2 * step} * p.layout.tile_bytes, S::kWeightBytes / 2,
                        full(stage));
          }
        }
      };
      auto tokens = [&](int tile, int step, int stage) {
        tensor_copy_2d(shared_address(stages) + stage * S::kStageBytes, &inputs, step * kStepK,
                       tile % p.token_tiles * kTokens, full(stage));
      };
      // Weights do not depend on the kernel before: the first stages' are asked for at once.
      const int early = min(S::kStages, step_end - step_begin);
      if (first_tile < p.tiles)
        for (int i = 0; i < early; ++i) weights(first_tile, step_begin + i, i);
      wait_for_previous_kernel();
      int stage = 0, count = 0;
      for (int tile = first_tile; tile < p.tiles; tile += tile_step)
        for (int step = step_begin; step < step_end; ++step, ++count) {
          if (count >= early) {
            if (count >= S::kStages) barrier_wait(empty(stage), (count / S::kStages - 1) & 1);
            weights(tile, step, stage);
          }
          tokens(tile, step, stage);
          if (++stage == S::kStages) stage = 0;
        }
    }
  } else {
    take_registers<232>();
    const int thread = threadIdx.x % 128, warp = thread / 32, lane = threadIdx.x % 32;
    const int r = lane / 4, t = lane % 4;
    float* const sums = all_sums + group * (S::kSumBytes / 4);
    // This thread's first sum among the staged: column 2t of rows 16·warp + r.
    float* const own = sums + 2 * t * kStagePitch + warp * 16 + r;
    auto staged = [&](int i) -> float& {
      return own[(i / 4 * 8 + i % 2) * kStagePitch + i % 4 / 2 * 8];
    };
    wait_for_previous_kernel();
    // The warpgroups take turns at the tensor cores, so that one multiplies while the other scales
    // its sums.
    const int my_turn = 1 + kConsumers + group, other_turn = 1 + kConsumers + (group ^ 1);
    if (group == 1) named_barrier_arrive(other_turn, 256);
    int stage = 0, phase = 0;
    for (int tile = first_tile; tile < p.tiles; tile += tile_step) {
      int products[S::kAccumulators];
      float acc[kExact ? 1 : S::kAccumulators];
#pragma unroll
      for (float& value : acc) value = 0;
      int chunk = 0, chunk_end = p.parts == 1 ? p.steps / p.chunks : step_end;

      // What this thread stores in the end: 8 rows of every 16th token; the blocks of a cluster
      // share the tokens. Its factors are asked for now, while there is time.
      const int block = tile / p.token_tiles * kConsumers + group;
      const int own_tokens = kTokens / p.parts;
      const int first_token = tile % p.token_tiles * kTokens + part * own_tokens;
      const int row = block * kTileRows + thread % 8 * 8;
      float x_scales[kTokens / 16], row_scales[8];
#pragma unroll
      for (int i = 0; i < kTokens / 16; ++i)
        x_scales[i] = p.epilogue.x_scale[min(first_token + i * 16 + thread / 8, p.m - 1)];
      if constexpr (kExact) {
        const int from = min(block, p.layout.row_blocks - 1) * kTileRows + thread % 8 * 8;
#pragma unroll
        for (int e = 0; e < 8; ++e)
          row_scales[e] =
              reinterpret_cast<const float*>(p.weight + p.layout.scales_offset())[from + e];
      }

      Fragments fragments[2];
      auto fetch = [&](Fragments& to) {
        barrier_wait(full(stage), phase);
        load_fragments<format, kZeroPoints>(
            stages + stage * S::kStageBytes + S::kInputBytes + group * S::kWeightBytes, warp, lane,
            to);
      };
      auto multiply = [&](Fragments& now, Fragments& next, int step) {
        const uint64_t b = swizzled_operand(shared_address(stages) + stage * S::kStageBytes);
        const int used = stage;
        named_barrier(my_turn, 256);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i)
          wgmma_s8(products, now.a[i], b + 2 * i, i > 0 || (kExact && step > step_begin));
        wgmma_commit();
        if (++stage == S::kStages) stage = 0, phase ^= 1;
        // Unpacking what comes next is hidden behind the product.
        if (step + 1 < step_end) fetch(next);
        wgmma_wait<0>();
        named_barrier_arrive(other_turn, 256);
        if (thread == 0) barrier_arrive(empty(used));
        if constexpr (!kExact) {
#pragma unroll
          for (int i = 0; i < S::kAccumulators; ++i)
            acc[i] = __fmaf_rn(now.scale[i % 4 / 2], __int2float_rn(products[i]), acc[i]);
          if (step + 1 == chunk_end) {
            if (chunk == 0) {
#pragma unroll
              for (int i = 0; i < S::kAccumulators; ++i) staged(i) = acc[i];
            } else {
#pragma unroll
              for (int i = 0; i < S::kAccumulators; ++i) staged(i) = __fadd_rn(staged(i), acc[i]);
            }
#pragma unroll
            for (float& value : acc) value = 0;
            ++chunk;
            chunk_end = (chunk + 1) * p.steps / p.chunks;
          }
        }
      };
      fetch(fragments[0]);
      for (int step = step_begin; step < step_end; step += 2) {
        multiply(fragments[0], fragments[1], step);
        if (step + 1 < step_end) multiply(fragments[1], fragments[0], step + 1);
      }
      if constexpr (kExact) {
#pragma unroll
        for (int i = 0; i < S::kAccumulators; ++i) staged(i) = __int_as_float(products[i]);
      }
      if (p.parts > 1) cluster_sync();
      named_barrier(1 + group, 128);

      if (block < p.layout.row_blocks) {
#pragma unroll
        for (int i = 0; i < kTokens / 16; ++i) {
          const int column = i * 16 + thread / 8, token = first_token + column;
          if (column >= own_tokens || token >= p.m) break;
          const float* from = sums + (part * own_tokens + column) * kStagePitch + thread % 8 * 8;
          uint4 halves[kMostParts][2];
#pragma unroll
          for (int c = 0; c < kMostParts; ++c)
#pragma unroll
            for (int h = 0; h < 2; ++h)
              if (c < p.parts)
                halves[c][h] = p.parts == 1 ? *reinterpret_cast<const uint4*>(from + 4 * h)
                                            : load_cluster(shared_address(from + 4 * h), c);
          uint32_t bits[8];
#pragma unroll
          for (int c = 0; c < kMostParts; ++c) {
            if (c >= p.parts) break;
            const uint32_t next[8] = {halves[c][0].x, halves[c][0].y, halves[c][0].z,
                                      halves[c][0].w, halves[c][1].x, halves[c][1].y,
                                      halves[c][1].z, halves[c][1].w};
#pragma unroll
            for (int e = 0; e < 8; ++e) {
              if (c == 0)
                bits[e] = next[e];
              else if constexpr (kExact)
                bits[e] += next[e];
              else
                bits[e] =
                    __float_as_uint(__fadd_rn(__uint_as_float(bits[e]), __uint_as_float(next[e])));
            }
          }
          float values[8];
#pragma unroll
          for (int e = 0; e < 8; ++e) {
            values[e] = __uint_as_float(bits[e]);
            if constexpr (kExact)
              values[e] = __fmul_rn(__int2float_rn(static_cast<int>(bits[e])), row_scales[e]);
            values[e] = __fmul_rn(values[e], x_scales[i]);
          }
          p.epilogue.store_8(values, token, row, p.n, p.vectors);
        }
      }
      // Staged sums are this warpgroup's own, and other blocks' to read.
      named_barrier(1 + group, 128);
    }
  }
  // The producer too, and nobody leaves while others of the cluster read its sums.
  if (p.parts > 1) {
    __syncwarp();
    if (group == kConsumers) cluster_sync();
    cluster_sync();
  }
}

CUtensorMap input_map(const LinearArgs& args, int tokens) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess)
      throw Error(ErrorKind::kUnsupported, "CUDA: the driver is too old for tensor maps (12.0)");
    return reinterpret_cast<Encode>(symbol);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(args.weight.k),
                               static_cast<cuuint64_t>(args.m)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(args.x_stride)};
  const cuuint32_t box[2] = {kStepK, static_cast<cuuint32_t>(tokens)}, ones[2] = {1, 1};
  if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(args.x), sizes, stride, box,
             ones, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw Error(ErrorKind::kResource, "CUDA: no tensor map of [{}, {}], stride {}", args.m,
                args.weight.k, args.x_stride);
  return map;
}

template <LinearFormat format, int kTokens, bool kZeroPoints>
void launch(const LinearArgs& args, Params p, int sms, cudaStream_t stream) {
  using S = Shape<format, kTokens>;
  auto* kernel = wide<format, kTokens, kZeroPoints>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
        "shared memory of the wide linear");
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(p.parts == 1 ? std::min(p.tiles, sms) : p.tiles * p.parts);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = S::kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(p.parts), 1, 1};
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, p, input_map(args, kTokens)), "wide linear");
}

}  // namespace

bool wide_supports(const LinearWeight& weight, const DeviceInfo& device) {
  return device.capability == 90 &&
         (weight.format == LinearFormat::kW8A8 ||
          (weight.format == LinearFormat::kW4A8 && weight.group_size == 128));
}

void run_wide(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream) {
  const LinearWeight& weight = args.weight;
  const bool int4 = weight.format == LinearFormat::kW4A8;
  Params p{};
  p.weight = static_cast<const uint8_t*>(weight.data);
  p.layout = tile_layout(int4 ? 4 : 8, weight.n, weight.k, weight.group_size);
  p.epilogue = epilogue_of(args);
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(weight.n);
  p.steps = static_cast<int>((weight.k + kStepK - 1) / kStepK);
  p.chunks = k_chunks(weight.n, weight.k);
  p.vectors = p.epilogue.vectors_of_8();
  const int row_tiles = (p.layout.row_blocks + kConsumers - 1) / kConsumers;
  // The shape that ends first: waves of blocks × (steps of K + about six for filling the pipeline
  // and storing, as many again for a cluster's exchange), a step being the tensor cores' 4 clocks a
  // token and some 100 of waiting. Clusters are taken to
  // find room on nine of ten SMs.
  int tokens = 0;
  double best = 0;
  for (const int candidate : {64, 128})
    for (const int parts : {1, p.chunks}) {
      const int token_tiles = (p.m + candidate - 1) / candidate;
      const int blocks = row_tiles * token_tiles * parts;
      const int room = parts == 1 ? device.sms : device.sms * 9 / 10 / parts * parts;
      const int waves = (blocks + room - 1) / room;
      const double cost =
          1.0 * waves * (p.steps / parts + (parts == 1 ? 6 : 12)) * (4 * candidate + 100);
      if (tokens == 0 || cost < best) {
        best = cost;
        tokens = candidate;
        p.parts = parts;
        p.token_tiles = token_tiles;
        p.tiles = row_tiles * token_tiles;
      }
    }
  constexpr LinearFormat k4 = LinearFormat::kW4A8, k8 = LinearFormat::kW8A8;
  if (!int4 && tokens == 64)
    launch<k8, 64, true>(args, p, device.sms, stream);
  else if (!int4)
    launch<k8, 128, true>(args, p, device.sms, stream);
  else if (weight.zero_points && tokens == 64)
    launch<k4, 64, true>(args, p, device.sms, stream);
  else if (weight.zero_points)
    launch<k4, 128, true>(args, p, device.sms, stream);
  else if (tokens == 64)
    launch<k4, 64, false>(args, p, device.sms, stream);
  else
    launch<k4, 128, false>(args, p, device.sms, stream);
}

}  // namespace whit::cuda
