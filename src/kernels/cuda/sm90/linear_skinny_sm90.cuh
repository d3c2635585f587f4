// The kernel of linear_skinny_sm90.h, a template of format, token tile and rows of a warp. Each
// format's instances are a source of their own, which nvcc compiles side by side.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_activate.cuh"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/row_source.cuh"
#include "kernels/cuda/sm90/linear_skinny_step.cuh"
#include "kernels/cuda/sm90/ptx_sm90.cuh"

namespace whit::cuda {

struct StreamParams {
  const uint8_t* weight;
  TileLayout layout;
  const uint8_t* x;
  int64_t x_row_bytes;
  RowSource source;
  Epilogue epilogue;
  int m, n, k;
  int block_items, larger_blocks;  // of kUnits · 16 rows: of a block, or one more in the first
  int chunks_log;                  // of the chunks of K, each a warp
  int slots;                       // items that a block works on at once
  int stages;                      // of each warp's ring
  // Where y is of silu(gate) · up, gates first: an item is 16 rows of each, up's 16 · up_units
  // behind gate's.
  int up_units;
  ActivatedOutput activated;
  int blocks;
};

// Parts of K whose activations a block waits for one after the other.
constexpr int kStreamPieces = 4;
// Between rows of activations in shared memory, beyond K: 32 bytes, so that the four rows that a
// quarter of a warp's loads reads lie in different banks.
constexpr int kStreamPad = 32;

__host__ __device__ constexpr int stream_stage_bytes(bool int4, int units) {
  return units * (kUnitBytes + (int4 ? 64 : 0));
}
__host__ __device__ inline int stream_x_pitch(int columns, int input_bytes) {
  return columns * input_bytes + kStreamPad;
}

// Warps of a block at most, and registers of a thread: such that those of two blocks fit an SM.
constexpr int stream_warps(int units) { return units == 2 ? 8 : 14; }
constexpr int stream_registers(int token_tiles, int units) {
  return units == 2 ? 128 : token_tiles == 1 ? 72 : 80;
}

template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kUnits, bool kMakesRows,
          bool kActivates>
__global__ void __maxnreg__(stream_registers(kTokenTiles, kUnits))
    stream(const __grid_constant__ StreamParams p) {
  using T = StreamTraits<format>;
  constexpr int kStage = stream_stage_bytes(T::kInt4, kUnits);
  constexpr int kValues = 4 * kTokenTiles;
  extern __shared__ __align__(128) uint8_t shared[];

  const int lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), warps = blockDim.x / 32;
  const int chunks = 1 << p.chunks_log, block = blockIdx.x;
  const int slot = warp >> p.chunks_log, chunk = warp & (chunks - 1);
  int item = block * p.block_items + min(block, p.larger_blocks);
  const int end_item = item + p.block_items + (block < p.larger_blocks ? 1 : 0);
  item = slot < p.slots ? item + slot : end_item;  // further warps only help to make rows
  const int tile_begin = chunk * p.layout.tiles >> p.chunks_log;
  const int tile_end = (chunk + 1) * p.layout.tiles >> p.chunks_log;
  // Shared memory: rings, activations, partial sums, barriers.
  uint8_t* const ring = shared + warp * p.stages * kStage;
  const int working = p.slots << p.chunks_log;
  uint8_t* const rows = shared + (working * p.stages * kStage + 127) / 128 * 128;
  const int pitch = stream_x_pitch(p.k, T::kInputBytes);
  auto* const partials = reinterpret_cast<uint32_t*>(rows + (p.m * pitch + 127) / 128 * 128);
  // [slot][chunk][unit][value][lane]
  const int area = chunks * kUnits * kValues * 32;
  const uint32_t barriers = shared_address(partials) + (chunks == 1 ? 0 : p.slots * area * 4);
  auto x_barrier = [&](int piece) { return barriers + 8 * piece; };
  const uint32_t full = barriers + 8 * (kStreamPieces + warp * p.stages);

  // A ring is its warp's alone: nobody else is waited for. What the elected lane knows of copies:
  // the next tile, and how many are left of its item.
  const bool elected = elect_one();
  const uint32_t ring_address = shared_address(ring);
  const uint8_t* from = nullptr;
  int scales_from = 0, copies = 0, copy_item = item;
  [[maybe_unused]] const int64_t up_distance = p.up_units / 4 * p.layout.block_bytes();
  auto begin_item = [&] {
    if (copy_item >= end_item) return;
    const int unit = copy_item * (kActivates ? 1 : kUnits);
    from = p.weight + (unit / 4) * p.layout.block_bytes() +
           int64_t{tile_begin} * p.layout.tile_bytes + unit % 4 * kUnitBytes;
    scales_from = (4 - unit % 4) * kUnitBytes + unit % 4 * T::kScaleBytes;
    copies = tile_end - tile_begin;
    copy_item += p.slots;
  };
  auto copy_to = [&](uint32_t stage, uint32_t barrier) {
    if (copies == 0) return;
    const uint32_t to = ring_address + stage;
    barrier_expect(barrier, kStage);
    constexpr int kCopies = kActivates ? 2 : 1, kCopied = kUnits / kCopies;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const uint8_t* rows_from = i == 0 ? from : from + up_distance;
      bulk_copy(to + i * kUnitBytes, rows_from, kCopied * kUnitBytes, barrier);
      if constexpr (T::kInt4)
        bulk_copy(to + kUnits * kUnitBytes + i * T::kScaleBytes, rows_from + scales_from,
                  kCopied * T::kScaleBytes, barrier);
    }
    from += p.layout.tile_bytes;
    if (--copies == 0) begin_item();
  };
  if (elected && slot < p.slots) {
#pragma unroll 1
    for (int stage = 0; stage < p.stages; ++stage) barrier_init(full + 8 * stage, 1);
    asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;" ::
                     : "memory");
    begin_item();
#pragma unroll 1
    for (int stage = 0; stage < p.stages; ++stage) copy_to(stage * kStage, full + 8 * stage);
  }
  if (warp == 0 && elected) {
#pragma unroll 1
    for (int piece = 0; piece < kStreamPieces; ++piece)
      barrier_init(x_barrier(piece), static_cast<int>(blockDim.x));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if constexpr (kMakesRows) prepare_rows(p.source, p.k);
  __syncthreads();
  let_next_kernel_launch();
  wait_for_previous_kernel();
  if constexpr (kActivates)
    if (blockIdx.x == 0 && threadIdx.x < kMostMadeRows) p.activated.next_magnitude[threadIdx.x] = 0;

  float token_scale = 0;  // of token `lane`
  if constexpr (kMakesRows) {
    // Behind all barriers.
    auto& scratch = *reinterpret_cast<RowScratch*>(
        shared +
        ((full - shared_address(shared)) + 8 * (working - warp) * p.stages + 127) / 128 * 128);
#pragma unroll 1
    for (int row = 0; row < p.m; ++row)
      make_row<CodeType::kInt8>(p.source, row, p.k, reinterpret_cast<int8_t*>(rows + row * pitch),
                                scratch);
    if (lane < p.m) token_scale = scratch.scale[lane];
  } else {
    // By copies of every thread: bulk copies would wait behind those of weights.
    int i = warp;
#pragma unroll 1
    for (int piece = 0; piece < kStreamPieces; ++piece) {
      const int begin = piece * p.layout.tiles / kStreamPieces * (T::kTileK * T::kInputBytes);
      const int end = (piece + 1) * p.layout.tiles / kStreamPieces * (T::kTileK * T::kInputBytes);
#pragma unroll 1
      for (; i < (piece + 1) * p.m; i += warps) {
        const int row = i - piece * p.m;
        const uint8_t* x = p.x + row * p.x_row_bytes;
        const uint32_t to = shared_address(rows) + row * pitch;
#pragma unroll 2
        for (int at = begin + lane * 16; at < end; at += 512) copy_async_16(to + at, x + at);
      }
      copy_async_arrive(x_barrier(piece));
    }
  }
  if constexpr (!kMakesRows && T::kInteger)
    if (lane < p.m) token_scale = p.epilogue.x_scale[lane];

  const uint32_t x_address = shared_address(rows) + t * 8;
  uint32_t x_rows[kTokenTiles];
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt)
    x_rows[nt] = x_address + min(nt * 8 + r, p.m - 1) * pitch;
  int piece = 0;
  // The first byte of the piece after those that have come.
  uint32_t come = 0;

  // Where a lane's value of a unit lies in y: its token, its row of the weight.
  auto token_of = [&](int value) { return value / 4 * 8 + 2 * t + value % 2; };
  auto row_of = [&](int u, int value) {
    return (item * kUnits + u) * kUnitRows + r + 8 * (value % 4 / 2);
  };
  auto residual_of = [&](int u, int value) {
    const int row = row_of(u, value), at = token_of(value);
    return row < p.n && at < p.m ? p.epilogue.residual_at(at, row) : 0.0f;
  };
  auto store = [&](uint32_t bits, int u, int value, float residual) {
    const int row = row_of(u, value), at = token_of(value);
    const float scale = T::kInteger ? __shfl_sync(0xffffffff, token_scale, at) : 1.0f;
    if (row >= p.n || at >= p.m) return;
    p.epilogue.store_scaled(
        scaled<format>(bits, row_scale_of<format>(p.weight, p.layout, row), scale), at, row,
        residual);
  };

  [[maybe_unused]] auto activate = [&](const auto& sums) {
    float largest_of[2] = {0, 0};
#pragma unroll
    for (int value = 0; value < 4; ++value) {
      const int row = item * kUnitRows + r + 8 * (value / 2), at = token_of(value);
      const float scale = __shfl_sync(0xffffffff, token_scale, at);
      if (at >= p.m) continue;
      float halves[2];
#pragma unroll
      for (int u = 0; u < 2; ++u)
        halves[u] = scaled<format>(
            sums.bits(u, value),
            row_scale_of<format>(p.weight, p.layout, row + u * p.up_units * kUnitRows), scale);
      const float y =
          activated(p.epilogue, halves[0], halves[1], row, row + p.up_units * kUnitRows);
      static_cast<float*>(p.activated.y)[at * p.activated.stride + row] = y;
      largest_of[value % 2] = MaxNan{}(fabsf(y), largest_of[value % 2]);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      raise_magnitude(p.activated.magnitude + 2 * t + i, largest_of[i], r == 0 && 2 * t + i < p.m);
  };
  const uint32_t codes =
      ring_address + ((t / 2) * 256 + r * 32 + (t % 2) * 16) / (T::kInt4 ? 1 : 2);
  const uint32_t scale_words = ring_address + kUnits * kUnitBytes + r * 8;
  // Where the oldest stage lies in the ring, its barrier and that one's phase: in registers of each
  // thread, as uniform ones, which the compiler would take, come late to what waits for them.
  uint32_t stage = per_thread(0), stage_barrier = full, phase = 0;
  const uint32_t ring_end = p.stages * kStage;
  for (; item < end_item; item += p.slots) {
    StreamSums<format, kTokenTiles, kZeroPoints, kUnits> sums;
    StreamStep<format, kTokenTiles, kUnits> now;
    constexpr uint32_t kTileBytes = T::kTileK * T::kInputBytes;
    uint32_t x_offset = per_thread(tile_begin * kTileBytes);
    const uint32_t x_offset_end = tile_end * kTileBytes;
    auto load = [&] {
      if constexpr (!kMakesRows) {
        while (x_offset >= come) {
          const uint32_t next = (piece + 1) * p.layout.tiles / kStreamPieces * kTileBytes;
          // Pieces before this warp's chunk are not its own to wait for.
          if (x_offset < next) barrier_spin(x_barrier(piece), 0);
          come = next, ++piece;
        }
      }
      now.load_inputs(x_rows, x_offset);
      barrier_spin(stage_barrier, phase);
      now.load_weights(codes + stage, scale_words + stage);
    };
    sums.clear();
    load();
#pragma unroll 1
    while (true) {
      sums.multiply(now);
      const uint32_t loaded = stage, loaded_barrier = stage_barrier;
      stage += kStage, stage_barrier += 8, x_offset += kTileBytes;
      if (stage == ring_end) stage = 0, stage_barrier = full, phase ^= 1;
      const bool last = x_offset == x_offset_end;
      if (!last) load();
      __syncwarp();
      if (elected) copy_to(loaded, loaded_barrier);
      sums.finish();
      if (last) break;
    }

    if constexpr (kActivates) {
      activate(sums);
      continue;
    }
    if (chunks == 1) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
#pragma unroll
        for (int value = 0; value < kValues; ++value)
          store(sums.bits(u, value), u, value, residual_of(u, value));
      continue;
    }
    // What this lane adds up, and what is added to it: asked for before others are waited for.
    constexpr int kEarly = 4;
    float residuals[kEarly];
#pragma unroll
    for (int j = 0; j < kEarly; ++j) {
      const int i = chunk + j * chunks;
      residuals[j] = i < kUnits * kValues ? residual_of(i / kValues, i % kValues) : 0.0f;
    }
    uint32_t* const mine = partials + slot * area + lane;
#pragma unroll
    for (int u = 0; u < kUnits; ++u)
#pragma unroll
      for (int value = 0; value < kValues; ++value)
        mine[((chunk * kUnits + u) * kValues + value) * 32] = sums.bits(u, value);
    named_barrier(1 + slot, chunks * 32);
    auto finish = [&](int i, float residual) {
      uint32_t total = mine[i * 32];
      for (int c = 1; c < chunks; ++c) {
        const uint32_t next = mine[(c * kUnits * kValues + i) * 32];
        if constexpr (T::kExact)
          total += next;
        else
          total = __float_as_uint(__fadd_rn(__uint_as_float(total), __uint_as_float(next)));
      }
      store(total, i / kValues, i % kValues, residual);
    };
#pragma unroll
    for (int j = 0; j < kEarly; ++j)
      if (chunk + j * chunks < kUnits * kValues) finish(chunk + j * chunks, residuals[j]);
    for (int i = chunk + kEarly * chunks; i < kUnits * kValues; i += chunks)
      finish(i, residual_of(i / kValues, i % kValues));
    // The next item's partial sums shall not overwrite those that others still read.
    if (item + p.slots < end_item) named_barrier(1 + slot, chunks * 32);
  }
}

template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kUnits, bool kMakesRows,
          bool kActivates = false>
void launch_stream(StreamParams p, int room, cudaStream_t stream_of_device) {
  using T = StreamTraits<format>;
  constexpr int kStage = stream_stage_bytes(T::kInt4, kUnits);
  auto* kernel = stream<format, kTokenTiles, kZeroPoints, kUnits, kMakesRows, kActivates>;
  const int chunks = 1 << p.chunks_log, warps = p.slots * chunks;
  const int rows = (p.m * stream_x_pitch(p.k, T::kInputBytes) + 127) / 128 * 128;
  const int partials =
      p.chunks_log == 0 ? 0 : p.slots * chunks * kUnits * (4 * kTokenTiles) * 32 * 4;
  const int fixed = rows + partials + 8 * kStreamPieces + 512 +
                    (kMakesRows ? static_cast<int>(sizeof(RowScratch)) : 0);
  p.stages = std::clamp((room - fixed) / (warps * (kStage + 8)), 2, 16);
  const int shared = fixed + p.stages * warps * (kStage + 8);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "shared memory of a linear");
  // More than half of an SM's registers. Otherwise, where products follow one another, blocks of
  // the next one begin wherever others end, two on one SM, and through whole layers one product
  // runs on some SMs while the next waits on the rest: slower by a tenth in a model, though a chain
  // of products alone, which stays even, is faster by as much.
  static const int registers = [&] {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "registers of a linear");
    return attributes.numRegs;
  }();
  const int threads = std::max(warps, std::min(32768 / (32 * registers) + 1, 32)) * 32;
  launch_dependent(kernel, dim3(p.blocks), dim3(threads), shared, stream_of_device, p);
}

template <LinearFormat format, bool kZeroPoints, int kUnits>
void launch_stream(const StreamParams& p, int room, cudaStream_t stream) {
  if constexpr (StreamTraits<format>::kInteger && kUnits == 2)
    if (p.activated.y != nullptr)
      return launch_stream<format, 1, kZeroPoints, kUnits, true, true>(p, room, stream);
  if constexpr (StreamTraits<format>::kInteger)
    if (p.source.kind != RowSource::Kind::kNone)
      return launch_stream<format, 1, kZeroPoints, kUnits, true>(p, room, stream);
  if (p.m <= 8)
    launch_stream<format, 1, kZeroPoints, kUnits, false>(p, room, stream);
  else
    launch_stream<format, 2, kZeroPoints, kUnits, false>(p, room, stream);
}
template <LinearFormat format, bool kZeroPoints>
void launch_stream(const StreamParams& p, int units, int room, cudaStream_t stream) {
  if (units == 1)
    launch_stream<format, kZeroPoints, 1>(p, room, stream);
  else
    launch_stream<format, kZeroPoints, 2>(p, room, stream);
}

void stream_w4a8(const StreamParams& p, bool zero_points, int units, int room, cudaStream_t stream);
void stream_w4a8_two_level(const StreamParams& p, int units, int room, cudaStream_t stream);
void stream_w4a16(const StreamParams& p, int units, int room, cudaStream_t stream);
void stream_w8a8(const StreamParams& p, int units, int room, cudaStream_t stream);

}  // namespace whit::cuda
