// The kernel of linear_skinny.h, a template of format, token tile and scale groups. Each format's
// instances are a source of their own (linear_skinny_*.cu), which nvcc compiles side by side.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_activate.cuh"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_skinny.h"
#include "kernels/cuda/linear_unpack.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/row_source.cuh"

namespace whit::cuda {

struct SkinnyParams {
  const uint8_t* weight;
  TileLayout layout;
  const uint8_t* x;
  int64_t x_row_bytes;
  RowSource source;
  Epilogue epilogue;
  int m, n, k;
  int units;   // of 16 rows; of activated.y's where a block takes gates and ups
  int chunks;  // of K, each a warp
  int slots;   // units that a block works on at once
  int blocks;
  // Instead of y: of an even slot's unit, gates, and the next one's, as many ups `up_units` behind.
  ActivatedOutput activated;
  int up_units;
};

constexpr int kSkinnyWarps = 16;

template <LinearFormat format>
struct SkinnyTraits {
  static constexpr bool kTwoLevel = format == LinearFormat::kW4A8TwoLevel;
  static constexpr bool kFp8 = format == LinearFormat::kW4AFp8;
  static constexpr bool kInt4 =
      format == LinearFormat::kW4A8 || format == LinearFormat::kW4A16 || kTwoLevel || kFp8;
  static constexpr bool kInteger =
      format == LinearFormat::kW4A8 || format == LinearFormat::kW8A8 || kTwoLevel;
  static constexpr bool kExact = has_exact_sums(format);
  static constexpr int kTileK = kInt4 ? 128 : 64;
  static constexpr bool kCodes = kInteger || kFp8;  // what inputs are
  static constexpr int kInputBytes = kCodes ? 1 : 2;
  // A lane's inputs of one tile and token: 8 of every 32 of K, in runs.
  static constexpr int kRun = kCodes ? 8 : 4;
  static constexpr int kRunWords = kRun * kInputBytes / 4;
  static constexpr int kRuns = kTileK / (4 * kRun);
};

template <LinearFormat format, int kTokenTiles>
struct SkinnyInputs {
  using T = SkinnyTraits<format>;
  uint32_t words[kTokenTiles][T::kRuns * T::kRunWords];

  // rows[…]: each token's row, at this lane's first run.
  __device__ __forceinline__ void load(const SkinnyParams& p,
                                       const uint8_t* const (&rows)[kTokenTiles], int tile, int t) {
    const bool whole = (tile + 1) * T::kTileK <= p.k;
#pragma unroll
    for (int nt = 0; nt < kTokenTiles; ++nt) {
      const uint8_t* from = rows[nt] + tile * (T::kTileK * T::kInputBytes);
      if (whole) {
#pragma unroll
        for (int run = 0; run < T::kRuns; ++run) load_run(nt, run, from);
      } else {
#pragma unroll
        for (int run = 0; run < T::kRuns; ++run) {
          const int k = tile * T::kTileK + run * 4 * T::kRun + T::kRun * t;
          uint32_t* to = words[nt] + run * T::kRunWords;
#pragma unroll
          for (int w = 0; w < T::kRunWords; ++w) to[w] = 0;
          if (k >= p.k) continue;
          load_run(nt, run, from);
          // What follows the last column may be a NaN, which times a weight of 0 is one too.
          if constexpr (!T::kInteger) {
#pragma unroll
            for (int w = 0; w < T::kRunWords; ++w) {
              constexpr int kPerWord = 4 / T::kInputBytes;
#pragma unroll
              for (int i = 0; i < kPerWord; ++i)
                if (k + kPerWord * w + i >= p.k) to[w] &= (1u << (32 / kPerWord * i)) - 1;
            }
          }
        }
      }
    }
  }
  __device__ __forceinline__ void load_run(int nt, int run, const uint8_t* from) {
    uint32_t* to = words[nt] + run * T::kRunWords;
    from += run * (16 * T::kRunWords);
    if constexpr (T::kRunWords == 2) {
      const uint2 v = *reinterpret_cast<const uint2*>(from);
      to[0] = v.x, to[1] = v.y;
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  }
};

// One tile of a unit, 16 rows × kTileK, as a lane holds it.
template <int kGroups>
struct SkinnyTile {
  static constexpr int kScales = kGroups == 0 ? 1 : kGroups;
  uint4 half[2];  // rows r and r + 8; words [upper][jj], of core matrices [jj][upper]
  uint2 scales[kScales];
};

// A warp's tiles on their way from memory: kAhead of them in shared memory, where every lane copies
// and later reads what it needs itself, so that nobody waits for anybody else. (As registers of the
// loads they would be waited for together: a warp has six scoreboards.) Core matrices are copied in
// pieces of 16 bytes, of which two lanes need half each: their warp meets once a tile.
template <int kGroups, int kAhead, bool kCoreMatrices>
class SkinnyRing {
 public:
  static constexpr int kStageBytes = 1024 + kGroups * 256;
  static constexpr int kBytes = kAhead * kStageBytes;  // of one warp

  __device__ __forceinline__ SkinnyRing(uint8_t* shared, int lane)
      : shared_(static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + lane * 16), lane_(lane) {}

  // Begins to copy a tile, this lane's codes and scales; to be called kAhead − 1 times first, then
  // once a wait().
  __device__ __forceinline__ void copy(bool present, const uint8_t* codes, const uint8_t* scales) {
    if (present) {
      const uint32_t to = shared_ + write_ * kStageBytes;
      copy_async_16(to, codes);
      copy_async_16(to + 512, codes + 512);
      if constexpr (kGroups > 0) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g)
          copy_async_8(to - lane_ * 8 + 1024 + g * 256, scales + g * 64);
      }
    }
    copy_async_commit();
    if (++write_ == kAhead) write_ = 0;
  }
  // The oldest tile.
  __device__ __forceinline__ SkinnyTile<kGroups> wait() {
    copy_async_wait<kAhead - 2>();
    SkinnyTile<kGroups> tile;
    const uint32_t from = shared_ + read_ * kStageBytes;
    if constexpr (kCoreMatrices) {
      __syncwarp();
      load_core_matrices(from - lane_ * 16 + lane_ % 4 / 2 * 128 + lane_ / 4 * 16 + lane_ % 2 * 8,
                         tile.half);
    } else {
      tile.half[0] = load_shared_16(from);
      tile.half[1] = load_shared_16(from + 512);
    }
    if constexpr (kGroups > 0) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        tile.scales[g] = load_shared_8(from - lane_ * 8 + 1024 + g * 256);
    }
    if (++read_ == kAhead) read_ = 0;
    return tile;
  }

 private:
  uint32_t shared_;
  int lane_, read_ = 0, write_ = 0;
};

// sums (or, where sums are exact, integers) += tile · inputs
template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kGroups>
__device__ __forceinline__ void multiply_tile(const SkinnyTile<kGroups>& tile,
                                              const SkinnyInputs<format, kTokenTiles>& x,
                                              float (&sums)[kTokenTiles][4],
                                              int (&integers)[kTokenTiles][4]) {
  const uint32_t low[4] = {tile.half[0].x, tile.half[0].y, tile.half[0].z, tile.half[0].w};
  const uint32_t high[4] = {tile.half[1].x, tile.half[1].y, tile.half[1].z, tile.half[1].w};
  if constexpr (format == LinearFormat::kW8A8) {
#pragma unroll
    for (int jj = 0; jj < 2; ++jj) {
      const uint32_t a[4] = {low[2 * jj], high[2 * jj], low[2 * jj + 1], high[2 * jj + 1]};
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt)
        mma_s8(integers[nt], a, x.words[nt][2 * jj], x.words[nt][2 * jj + 1]);
    }
  } else if constexpr (format == LinearFormat::kW4A8TwoLevel) {
    const TwoLevelCodes codes(tile.scales[0]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4];
      unpack_operand(a, tile.half, step % 2,
                     [&](uint32_t word, int row) { return codes.of(word, step / 2, row); });
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt)
        mma_s8(integers[nt], a, x.words[nt][2 * step], x.words[nt][2 * step + 1]);
    }
  } else if constexpr (format == LinearFormat::kW8A16) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int jj = 0; jj < 2; ++jj) {
        uint32_t a[4];
        unpack_operand(a, tile.half, jj,
                       [&](uint32_t word, int) { return bf16_of_bytes(word, i); });
#pragma unroll
        for (int nt = 0; nt < kTokenTiles; ++nt)
          mma_bf16(sums[nt], a, x.words[nt][4 * i + 2 * jj], x.words[nt][4 * i + 2 * jj + 1]);
      }
  } else {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const uint32_t word_low = tile.scales[g].x, word_high = tile.scales[g].y;
      int products[kTokenTiles][4] = {};
      float float_products[kTokenTiles][4] = {};
      if constexpr (format == LinearFormat::kW4A8) {
        const uint32_t zeros[2] = {zero_bytes_of(word_low), zero_bytes_of(word_high)};
#pragma unroll
        for (int step = g * 4 / kGroups; step < (g + 1) * 4 / kGroups; ++step) {
          uint32_t a[4];
          unpack_operand(a, tile.half, step % 2, [&](uint32_t word, int row) {
            return int8_of_nibbles<kZeroPoints>(word, step / 2, zeros[row]);
          });
#pragma unroll
          for (int nt = 0; nt < kTokenTiles; ++nt)
            mma_s8(products[nt], a, x.words[nt][2 * step], x.words[nt][2 * step + 1]);
        }
      } else if constexpr (format == LinearFormat::kW4AFp8) {
        const E4m3Codes<kZeroPoints> codes_low(word_low), codes_high(word_high);
#pragma unroll
        for (int step = g * 4 / kGroups; step < (g + 1) * 4 / kGroups; ++step)
#pragma unroll
          for (int upper = 0; upper < 2; ++upper) {
            const int i = step / 2, jj = step % 2;
            const uint32_t l = codes_low.of(low[2 * upper + jj], i);
            const uint32_t h = codes_high.of(high[2 * upper + jj], i);
            const uint32_t a[4] = {f16_of_e4m3<0>(l), f16_of_e4m3<0>(h), f16_of_e4m3<1>(l),
                                   f16_of_e4m3<1>(h)};
#pragma unroll
            for (int nt = 0; nt < kTokenTiles; ++nt) {
              const uint32_t b = x.words[nt][2 * step + upper];
              mma_f16(float_products[nt], a, f16_of_e4m3<0>(b), f16_of_e4m3<1>(b));
            }
          }
      } else {
        const uint32_t zeros[2] = {minus_zero_of(word_low), minus_zero_of(word_high)};
#pragma unroll
        for (int i = g * 4 / kGroups; i < (g + 1) * 4 / kGroups; ++i)
#pragma unroll
          for (int jj = 0; jj < 2; ++jj) {
            uint32_t a[4];
            unpack_operand(a, tile.half, jj, [&](uint32_t word, int row) {
              return bf16_of_nibbles(word, i, zeros[row]);
            });
#pragma unroll
            for (int nt = 0; nt < kTokenTiles; ++nt)
              mma_bf16(float_products[nt], a, x.words[nt][4 * i + 2 * jj],
                       x.words[nt][4 * i + 2 * jj + 1]);
          }
      }
      constexpr float kUnit = format == LinearFormat::kW4A8 ? kInt4Unit<kZeroPoints> : 1.0f;
      const float scale[2] = {scale_of(word_low) * kUnit, scale_of(word_high) * kUnit};
#pragma unroll
      for (int nt = 0; nt < kTokenTiles; ++nt)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const float product = format == LinearFormat::kW4A8 ? __int2float_rn(products[nt][c])
                                                              : float_products[nt][c];
          sums[nt][c] = __fmaf_rn(scale[c / 2], product, sums[nt][c]);
        }
    }
  }
}

// One more than the tiles of 1 KB that a warp has in flight: 84 KB with the 14 to 16 warps of an
// SM, three times what a loaded memory latency of 0.8 µs asks for at 4.6 TB/s, half of that where a
// block has few warps. What remains of 256 KB is L1, for activations.
template <int kGroups>
constexpr int kSkinnyAhead = kGroups == 4 ? 4 : 7;

// Shared memory of one warp's rows and their scales.
__host__ __device__ inline int skinny_warp_bytes(int m, int k, int value_bytes) {
  return m * made_row_bytes(k, value_bytes) + 16;
}

// Whether each warp makes its rows, which then fit beside its weights.
inline bool skinny_warps_make(const SkinnyParams& p) {
  switch (p.source.kind) {
    case RowSource::Kind::kNone:
      return false;
    case RowSource::Kind::kActivated:
      // A chunk is at most a step of kChunkStep longer than others.
      return p.k <= 2 * kMostWarpRow && p.k <= p.chunks * (kMostWarpRow - kChunkStep);
    default:
      return p.k <= kMostWarpRow;
  }
}

// Whether rows are those of x, or at most kMostMadeRows made of a source.
enum class SkinnyRows { kGiven, kMadeByBlock, kMadeByWarp };

template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kGroups, SkinnyRows kRows,
          bool kActivates>
__global__ void __launch_bounds__(kSkinnyWarps * 32, 1)
    skinny(const __grid_constant__ SkinnyParams p) {
  using T = SkinnyTraits<format>;
  constexpr bool kCoreMatrices = format == LinearFormat::kW8A8;
  using Ring = SkinnyRing<kGroups, kSkinnyAhead<kGroups>, kCoreMatrices>;
  constexpr int kInputBuffers = kTokenTiles <= 2 ? 2 : 1;
  constexpr int kValues = 4 * kTokenTiles;
  extern __shared__ __align__(16) uint8_t shared[];

  const int lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const int warp = threadIdx.x / 32, slot = warp / p.chunks, chunk = warp % p.chunks;
  // [slot][chunk][value][lane]
  uint32_t* const partials =
      reinterpret_cast<uint32_t*>(shared + p.slots * p.chunks * Ring::kBytes);
  // Units of this slot, or pairs of them.
  const int step_units = kActivates ? p.slots / 2 : p.slots;
  int unit =
      static_cast<int>(int64_t{blockIdx.x} * p.units / gridDim.x) + (kActivates ? slot / 2 : slot);
  const int end_unit = static_cast<int>((int64_t{blockIdx.x} + 1) * p.units / gridDim.x);
  const int up_units = kActivates && slot % 2 == 1 ? p.up_units : 0;
  constexpr int kTilesOfStep = static_cast<int>(kChunkStep) / T::kTileK;
  const int steps = (p.layout.tiles + kTilesOfStep - 1) / kTilesOfStep;
  const int tile_begin = chunk * steps / p.chunks * kTilesOfStep;
  const int tile_end = min(p.layout.tiles, (chunk + 1) * steps / p.chunks * kTilesOfStep);
  const int token = blockIdx.y * 8 * kTokenTiles;

  Ring ring(shared + warp * Ring::kBytes, lane);
  int copy_unit = unit, copy_tile = tile_begin;
  const uint8_t *codes = nullptr, *scales = nullptr;
  auto copy_next = [&] {
    if (copy_tile == tile_begin) {
      const int of = copy_unit + up_units;
      const uint8_t* from =
          p.weight + (of / 4) * p.layout.block_bytes() + int64_t{tile_begin} * p.layout.tile_bytes;
      codes = from + (of % 4) * kUnitBytes +
              (kCoreMatrices ? lane * 16 : (t / 2) * 256 + r * 32 + (t % 2) * 16);
      scales = from + 4 * kUnitBytes + (of % 4) * kGroups * 64 + r * 8;
    }
    ring.copy(copy_unit < end_unit, codes, scales);
    codes += p.layout.tile_bytes;
    scales += p.layout.tile_bytes;
    if (++copy_tile == tile_end) {
      copy_tile = tile_begin;
      copy_unit += step_units;
    }
  };
#pragma unroll
  for (int i = 0; i < kSkinnyAhead<kGroups> - 1; ++i) copy_next();
  constexpr LinearInput kInput = T::kFp8     ? LinearInput::kE4m3
                                 : T::kCodes ? LinearInput::kInt8
                                             : LinearInput::kBf16;
  [[maybe_unused]] const auto warp_rows = [&] {
    if constexpr (kRows == SkinnyRows::kMadeByWarp)
      return WarpRows<kInput>(p.source, p.k, tile_begin * T::kTileK, tile_end * T::kTileK);
    else
      return 0;
  }();
  let_next_kernel_launch();
  // Arguments come from memory too, once for each line of theirs.
  asm volatile("" ::"l"(p.x), "l"(p.source.x), "l"(p.epilogue.y), "l"(p.epilogue.residual),
               "l"(p.epilogue.bias), "l"(p.activated.y), "r"(p.n));
  wait_for_previous_kernel();
  if constexpr (kActivates)
    if (blockIdx.x == 0 && threadIdx.x < kMostMadeRows && p.activated.next_magnitude != nullptr)
      p.activated.next_magnitude[threadIdx.x] = 0;

  const float* x_scale = p.epilogue.x_scale;
  // What a sum becomes with its scales and residual. Those of the first value that a lane stores
  // are asked for before the sums are known, and before rows are made.
  struct Extras {
    float row_scale, x_scale, residual;
  };
  auto row_of = [&](int value) { return (unit + up_units) * kUnitRows + r + 8 * (value % 4 / 2); };
  auto token_of = [&](int value) { return token + value / 4 * 8 + 2 * t + value % 2; };
  auto extras_of = [&](int value) {
    const int row = row_of(value), at = token_of(value);
    Extras extras = {1, 1, 0};
    if (row >= p.n || at >= p.m) return extras;
    extras.row_scale = row_scale_of<format>(p.weight, p.layout, row);
    if constexpr (T::kCodes && kRows == SkinnyRows::kGiven) extras.x_scale = x_scale[at];
    extras.residual = p.epilogue.residual_at(at, row);
    return extras;
  };
  // Of a pair's value that is activated: the scales of its rows.
  [[maybe_unused]] auto pair_scales_of = [&](int value) {
    const int column = unit * kUnitRows + r + 8 * (value % 4 / 2);
    return make_float2(row_scale_of<format>(p.weight, p.layout, column),
                       row_scale_of<format>(p.weight, p.layout, column + p.up_units * kUnitRows));
  };
  const int first_unit = unit;
  const int first_value = kActivates ? slot % 2 * p.chunks + chunk : p.chunks == 1 ? 0 : chunk;
  Extras first_extras = {1, 1, 0};
  float2 first_scales = make_float2(1, 1);
  auto ask_for_first = [&] {
    if (unit >= end_unit) return;
    if constexpr (kActivates)
      first_scales = pair_scales_of(first_value);
    else
      first_extras = extras_of(first_value);
  };
  ask_for_first();

  const uint8_t* x = p.x;
  int64_t x_row_bytes = p.x_row_bytes;
  if constexpr (kRows != SkinnyRows::kGiven) {
    constexpr int kPartials = kValues * 128;
    uint8_t* const made =
        shared + p.slots * p.chunks * (Ring::kBytes + (p.chunks > 1 || kActivates ? kPartials : 0));
    x_row_bytes = made_row_bytes(p.k, T::kInputBytes);
    if constexpr (kRows == SkinnyRows::kMadeByWarp) {
      uint8_t* const mine = made + warp * skinny_warp_bytes(p.m, p.k, T::kInputBytes);
      auto* const scales_of_rows = reinterpret_cast<float*>(mine + p.m * x_row_bytes);
      for (int row = 0; row < p.m; ++row) {
        const float scale = warp_rows.make(row, mine + row * x_row_bytes);
        if (lane == 0) scales_of_rows[row] = scale;
      }
      __syncwarp();
      x = mine;
      if constexpr (T::kCodes) x_scale = scales_of_rows;
    } else {
      auto& scratch = *reinterpret_cast<RowScratch*>(made);
      auto* const to = reinterpret_cast<uint8_t*>(&scratch + 1);
      for (int row = 0; row < p.m; ++row)
        make_row<kCodeType<kInput>>(p.source, row, p.k,
                                    reinterpret_cast<int8_t*>(to + row * x_row_bytes), scratch);
      x = to;
      x_scale = scratch.scale;
    }
  }
  const uint8_t* rows[kTokenTiles];
#pragma unroll
  for (int nt = 0; nt < kTokenTiles; ++nt)
    rows[nt] =
        x + int64_t{min(token + nt * 8 + r, p.m - 1)} * x_row_bytes + t * T::kRun * T::kInputBytes;

  auto store = [&](uint32_t bits, int value, const Extras& extras) {
    const int row = row_of(value), at = token_of(value);
    if (row >= p.n || at >= p.m) return;
    float token_scale = extras.x_scale;
    if constexpr (T::kCodes && kRows != SkinnyRows::kGiven) token_scale = x_scale[at];
    p.epilogue.store_scaled(scaled<format>(bits, extras.row_scale, token_scale), at, row,
                            extras.residual);
  };
  // The sum of the chunks' parts of one value.
  auto total_of = [&](const uint32_t* parts, int value) {
    uint32_t total = parts[value * 32];
    for (int c = 1; c < p.chunks; ++c) {
      const uint32_t next = parts[(c * kValues + value) * 32];
      if constexpr (T::kExact)
        total += next;
      else
        total = __float_as_uint(__fadd_rn(__uint_as_float(total), __uint_as_float(next)));
    }
    return total;
  };
  // Of the pair's parts, gates first.
  [[maybe_unused]] auto activate = [&](const uint32_t* parts, int value, float2 scales) {
    const int column = unit * kUnitRows + r + 8 * (value % 4 / 2), at = token_of(value);
    float y = 0;
    if (at < p.m) {
      float sums[2];
#pragma unroll
      for (int half = 0; half < 2; ++half)
        sums[half] =
            scaled<format>(total_of(parts + half * p.chunks * kValues * 32, value),
                           half == 0 ? scales.x : scales.y, T::kCodes ? x_scale[at] : 1.0f);
      y = activated(p.epilogue, sums[0], sums[1], column, column + p.up_units * kUnitRows);
      const int64_t place = at * p.activated.stride + column;
      if (p.activated.magnitude == nullptr)
        static_cast<__nv_bfloat16*>(p.activated.y)[place] = __float2bfloat16_rn(y);
      else
        static_cast<float*>(p.activated.y)[place] = y;
    }
    if (p.activated.magnitude != nullptr)
      raise_magnitude(p.activated.magnitude + at, fabsf(y), r == 0 && at < p.m);
  };

  SkinnyInputs<format, kTokenTiles> inputs[kInputBuffers];
  if constexpr (kInputBuffers == 2) inputs[0].load(p, rows, tile_begin, t);
  for (; unit < end_unit; unit += step_units) {
    float sums[kTokenTiles][4] = {};
    int integers[kTokenTiles][4] = {};
    if (unit != first_unit) ask_for_first();
    auto step = [&](int tile, SkinnyInputs<format, kTokenTiles>& now,
                    SkinnyInputs<format, kTokenTiles>& next) {
      // The next tile's inputs, or the next unit's first, come while this one is multiplied.
      if constexpr (kInputBuffers == 2)
        next.load(p, rows, tile + 1 == tile_end ? tile_begin : tile + 1, t);
      else
        now.load(p, rows, tile, t);
      const SkinnyTile<kGroups> weights = ring.wait();
      copy_next();
      multiply_tile<format, kTokenTiles, kZeroPoints, kGroups>(weights, now, sums, integers);
    };
    int tile = tile_begin;
#pragma unroll 1
    for (; tile + 1 < tile_end; tile += 2) {
      step(tile, inputs[0], inputs[kInputBuffers - 1]);
      step(tile + 1, inputs[kInputBuffers - 1], inputs[0]);
    }
    if (tile < tile_end) {
      step(tile, inputs[0], inputs[kInputBuffers - 1]);
      inputs[0] = inputs[kInputBuffers - 1];
    }
    auto bits_of = [&](int value) {
      if constexpr (T::kExact)
        return static_cast<uint32_t>(integers[value / 4][value % 4]);
      else
        return __float_as_uint(sums[value / 4][value % 4]);
    };
    uint32_t* mine = partials + slot * p.chunks * kValues * 32 + lane;
    if constexpr (kActivates) {
#pragma unroll
      for (int value = 0; value < kValues; ++value)
        mine[(chunk * kValues + value) * 32] = bits_of(value);
      named_barrier(1 + slot / 2, 2 * p.chunks * 32);
      const uint32_t* parts = partials + slot / 2 * 2 * p.chunks * kValues * 32 + lane;
      for (int value = slot % 2 * p.chunks + chunk; value < kValues; value += 2 * p.chunks)
        activate(parts, value, value == first_value ? first_scales : pair_scales_of(value));
      if (unit + step_units < end_unit) named_barrier(1 + slot / 2, 2 * p.chunks * 32);
      continue;
    }
    if (p.chunks == 1) {
#pragma unroll
      for (int value = 0; value < kValues; ++value)
        store(bits_of(value), value, value == 0 ? first_extras : extras_of(value));
      continue;
    }
#pragma unroll
    for (int value = 0; value < kValues; ++value)
      mine[(chunk * kValues + value) * 32] = bits_of(value);
    named_barrier(1 + slot, p.chunks * 32);
    for (int value = chunk; value < kValues; value += p.chunks)
      store(total_of(mine, value), value, value == chunk ? first_extras : extras_of(value));
    // The next unit's partial sums shall not overwrite those that others still read.
    if (unit + step_units < end_unit) named_barrier(1 + slot, p.chunks * 32);
  }
}

template <LinearFormat format, int kTokenTiles, bool kZeroPoints, int kGroups, SkinnyRows kRows,
          bool kActivates = false>
void launch_skinny(const SkinnyParams& p, cudaStream_t stream) {
  constexpr int kRing = SkinnyRing<kGroups, kSkinnyAhead<kGroups>, false>::kBytes;
  constexpr int kInputBytes = SkinnyTraits<format>::kInputBytes;
  auto* kernel = skinny<format, kTokenTiles, kZeroPoints, kGroups, kRows, kActivates>;
  const int warps = p.slots * p.chunks;
  int shared = warps * kRing + (p.chunks > 1 || kActivates ? warps * kTokenTiles * 4 * 32 * 4 : 0);
  if (kRows == SkinnyRows::kMadeByWarp)
    shared += warps * skinny_warp_bytes(p.m, p.k, kInputBytes);
  else if (kRows == SkinnyRows::kMadeByBlock)
    shared += static_cast<int>(sizeof(RowScratch)) + p.m * made_row_bytes(p.k, kInputBytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "shared memory of a linear");
  launch_dependent(kernel, dim3(p.blocks, (p.m + 8 * kTokenTiles - 1) / (8 * kTokenTiles)),
                   dim3(32 * warps), shared, stream, p);
}

template <LinearFormat format, bool kZeroPoints, int kGroups>
void launch_skinny(const SkinnyParams& p, cudaStream_t stream) {
  if (p.activated.y != nullptr)
    return launch_skinny<format, 1, kZeroPoints, kGroups, SkinnyRows::kMadeByWarp, true>(p, stream);
  if (skinny_warps_make(p))
    return launch_skinny<format, 1, kZeroPoints, kGroups, SkinnyRows::kMadeByWarp>(p, stream);
  if constexpr (SkinnyTraits<format>::kCodes)
    if (p.source.kind != RowSource::Kind::kNone)
      return launch_skinny<format, 1, kZeroPoints, kGroups, SkinnyRows::kMadeByBlock>(p, stream);
  if (p.m <= 8)
    launch_skinny<format, 1, kZeroPoints, kGroups, SkinnyRows::kGiven>(p, stream);
  else if (p.m <= 16)
    launch_skinny<format, 2, kZeroPoints, kGroups, SkinnyRows::kGiven>(p, stream);
  else
    launch_skinny<format, 4, kZeroPoints, kGroups, SkinnyRows::kGiven>(p, stream);
}

// Of 4 bits. Groups of 32 and 64 take zero points out always: one instance.
template <LinearFormat format>
void launch_skinny_int4(const SkinnyParams& p, bool zero_points, cudaStream_t stream) {
  if (p.layout.groups == 4)
    launch_skinny<format, true, 4>(p, stream);
  else if (zero_points)
    launch_skinny<format, true, 1>(p, stream);
  else
    launch_skinny<format, false, 1>(p, stream);
}

void skinny_w4a8(const SkinnyParams& p, bool zero_points, cudaStream_t stream);
void skinny_w4a8_two_level(const SkinnyParams& p, cudaStream_t stream);
void skinny_w4a16(const SkinnyParams& p, cudaStream_t stream);
void skinny_w4afp8(const SkinnyParams& p, bool zero_points, cudaStream_t stream);
void skinny_w8(const SkinnyParams& p, LinearFormat format, cudaStream_t stream);

}  // namespace whit::cuda
