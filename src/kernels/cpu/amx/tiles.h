// AMX int8 tiles over the VNNI panels (kernels/cpu/linear_layout.h): C[32, 32] += A[32, K] ·
// panelᵀ.
//
// A line of a panel is 4 consecutive K of 32 rows, so 16 lines are two B tiles as they lie in
// memory. tdpbssd takes 16 × 16 outputs by 64 K in 16 clocks and 52 clocks later the result is
// there: four accumulators in turn keep the unit busy.
//
// **As few tiles as can be hold anything.** On shared machines a thread's tiles are often in a
// state in which the more of them are in use, the slower all are, as if results under way had to
// find places in a register file that somebody else has half of: with eight in use loads and
// products wait for each other. So the four products of a step use two tiles for operands, and load
// a B tile twice: in that state four would make them 1.6 times as long (docs/cpu.md). Tiles are
// released as soon as they are done with (~Tiles).
//
// Storing the four sums and loading them again costs as much as a dozen products or two, so they
// stay in their tiles along K. A tile load that misses L1 waits for each of its 16 lines, and keeps
// its place meanwhile: both operands are prefetched from L2 to L1 two steps ahead.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTileColumns = 64;
constexpr int64_t kBlockRows = 2 * kTileRows;            // of C
constexpr int64_t kSecondTile = kTileRows * kPanelRows;  // of C, in sums
constexpr int64_t kStepsAhead = 2;
// Below, a tile is mostly padding and the VNNI kernels are faster.
constexpr int64_t kLeastRows = 9;

// The tile configuration of one thread, for products of `rows` ≤ 32 rows over `k_step` columns at a
// time (a multiple of 4, at most 64); released with the object. C: 0–3, A: 4–5, B: 6–7; the first
// 16 rows are in A 4 and C 0 and 1, the others in A 5 and C 2 and 3, or all in both where they are
// 16 or less. Of 32 rows and kTileColumns all are alike, and may be used as one likes.
class Tiles {
 public:
  explicit Tiles(int64_t k_step, int64_t rows = 2 * kTileRows) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t column_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      const bool a = tile == 4 || tile == 5, b = tile >= 6;
      config.column_bytes[tile] = static_cast<uint16_t>(a ? k_step : 64);
      const bool second = rows > kTileRows && (tile == 2 || tile == 3 || tile == 5);
      config.rows[tile] = static_cast<uint8_t>(b        ? k_step / 4
                                               : second ? rows - kTileRows
                                                        : std::min(rows, kTileRows));
    }
    // g++'s intrinsic says that it reads the first 8 bytes alone, and the others are not written.
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Rows of activations as tiles of 16 rows × k_step columns. They are read where they lie, but for
// a last tile of fewer than 16 rows, and where rows are a multiple of 1024 bytes apart
// (int8_row_stride): these are copied, row tile by row tile, each 1 KB further from a multiple of
// the cache's ways.
class ActivationTiles {
 public:
  static int64_t scratch_bytes(int64_t rows, int64_t k) {
    return round_up(rows, kTileRows) * (round_up(k, kTileColumns) + kTileColumns);
  }
  ActivationTiles(const int8_t* q, int64_t stride, int64_t rows, int64_t k, int64_t k_step,
                  int8_t* scratch)
      : q_(q),
        stride_(stride),
        k_step_(k_step),
        tile_bytes_(scratch_bytes(kTileRows, k)),
        scratch_(scratch) {
    whole_ = stride % 1024 == 0 ? 0 : rows / kTileRows;
    for (int64_t first = whole_ * kTileRows; first < rows; first += kTileRows)
      for (int64_t column = 0; column < k; column += k_step)
        for (int64_t r = 0; r < kTileRows; ++r) {
          int8_t* to = scratch + (first / kTileRows - whole_) * tile_bytes_ +
                       (column * kTileRows + r * k_step);
          if (first + r < rows)
            std::memcpy(to, q + (first + r) * stride + column, k_step);
          else
            std::memset(to, 0, k_step);
        }
  }

  struct Tile {
    const int8_t* at;
    int64_t stride, step;  // bytes from row to row, and from tile to tile along K
  };
  Tile tile(int64_t row, int64_t column) const {
    const int64_t index = row / kTileRows;
    if (index < whole_) return {q_ + row * stride_ + column, stride_, k_step_};
    return {scratch_ + (index - whole_) * tile_bytes_ + column * kTileRows, k_step_,
            k_step_ * kTileRows};
  }

 private:
  const int8_t* q_;
  int64_t stride_, k_step_, tile_bytes_, whole_;
  int8_t* scratch_;
};

// Rows of a pass where `rows` take several of at most `most` each: about equal ones, whole blocks.
inline int64_t even_pass(int64_t rows, int64_t most) {
  return rows == 0 ? most : std::min(most, round_up(even_tile(rows, most), kBlockRows));
}

// What a product over a run of K begins with: one or two tiles of activations (two where `rows` is
// above 16) and a panel's lines.
struct Operands {
  ActivationTiles::Tile a[2];
  const std::byte* lines;
  int64_t rows;
};
inline Operands operands(const ActivationTiles& a, int64_t row, int64_t rows, int64_t column,
                         const std::byte* lines) {
  const ActivationTiles::Tile first = a.tile(row, column);
  return {{first, rows > kTileRows ? a.tile(row + kTileRows, column) : first}, lines, rows};
}

inline void prefetch_tile(const ActivationTiles::Tile& tile) {
  for (int64_t r = 0; r < kTileRows; ++r)
    _mm_prefetch(reinterpret_cast<const char*>(tile.at + r * tile.stride), _MM_HINT_T0);
}
inline void prefetch_lines(const std::byte* lines, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(lines + 64 * i), _MM_HINT_T0);
}
// What to bring to L2 while products run: `lines` cache lines at each step.
struct BlockPrefetch {
  const std::byte* next = nullptr;
  int64_t lines = 0;
  void step() {
    for (int64_t i = 0; i < lines; ++i, next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
  }
};

// Whether operands are prefetched to L1.
enum class Ahead { kNone, kL1 };

// to [kRowTiles · 16][32] = from (null: 0) + A · linesᵀ over `steps` steps of k_step columns; after
// each step between(step) runs beside the products. `next` is what is multiplied after this.
template <int kRowTiles, Ahead kAhead, typename Between>
inline void multiply_tiles(Operands now, const Operands& next, int64_t steps, int64_t k_step,
                           const int32_t* from, int32_t* to, Between&& between) {
  const int64_t step_bytes = k_step / 4 * kLineBytes, half = step_bytes / kLineBytes;
  // g++'s _tile_loadd does not say that it reads memory: what was written before must be there.
  __asm__ volatile("" ::: "memory");
  if (from == nullptr) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRowTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, from, kLineBytes);
    _tile_loadd(1, from + 16, kLineBytes);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(2, from + kSecondTile, kLineBytes);
      _tile_loadd(3, from + kSecondTile + 16, kLineBytes);
    }
  }
  Operands ahead = now;
  ahead.lines += kStepsAhead * step_bytes;
  for (int i = 0; i < kRowTiles; ++i) ahead.a[i].at += kStepsAhead * now.a[i].step;
  const int64_t turn = std::max<int64_t>(0, steps - kStepsAhead);
  for (int64_t step = 0; step < steps; ++step) {
    if (kAhead == Ahead::kL1 && step == turn) ahead = next;
    _tile_loadd(6, now.lines, kLineBytes);
    _tile_loadd(4, now.a[0].at, now.a[0].stride);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kAhead == Ahead::kL1) prefetch_tile(ahead.a[0]);
    _tile_loadd(6, now.lines + 64, kLineBytes);
    _tile_dpbssd(1, 4, 6);
    if constexpr (kAhead == Ahead::kL1) prefetch_lines(ahead.lines, half);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(4, now.a[1].at, now.a[1].stride);
      _tile_dpbssd(3, 4, 6);
      if constexpr (kAhead == Ahead::kL1) prefetch_tile(ahead.a[1]);
      _tile_loadd(6, now.lines, kLineBytes);
      _tile_dpbssd(2, 4, 6);
    }
    if constexpr (kAhead == Ahead::kL1) prefetch_lines(ahead.lines + 64 * half, half);
    between(step);
    for (int i = 0; i < kRowTiles; ++i) {
      now.a[i].at += now.a[i].step;
      ahead.a[i].at += ahead.a[i].step;
    }
    now.lines += step_bytes;
    ahead.lines += step_bytes;
  }
  _tile_stored(0, to, kLineBytes);
  _tile_stored(1, to + 16, kLineBytes);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, to + kSecondTile, kLineBytes);
    _tile_stored(3, to + kSecondTile + 16, kLineBytes);
  }
  __asm__ volatile("" ::: "memory");
}
template <Ahead kAhead, typename Between>
inline void multiply_tiles(const Operands& now, const Operands& next, int64_t steps, int64_t k_step,
                           const int32_t* from, int32_t* to, Between&& between) {
  if (now.rows > kTileRows)
    multiply_tiles<2, kAhead>(now, next, steps, k_step, from, to, between);
  else
    multiply_tiles<1, kAhead>(now, next, steps, k_step, from, to, between);
}

// y = value(i, v) (+ bias) (+ residual) for rows [row_begin, row_begin + rows) and the panel's 32
// columns, v being the first of 16: straight from registers, while the next products run. A panel
// that is not whole goes through store_tile.
template <bool kBias, bool kResidual, typename Value>
inline void store_whole_rows(const LinearArgs& args, int64_t column, int64_t row_begin,
                             int64_t rows, Value&& value) {
  float* y = args.y + row_begin * args.y_stride + column;
  const float* residual =
      kResidual ? args.residual + row_begin * args.residual_stride + column : nullptr;
  for (int64_t i = 0; i < rows; ++i, y += args.y_stride) {
#pragma GCC unroll 2
    for (int64_t v = 0; v < kPanelRows; v += 16) {
      __m512 sum = value(i, v);
      if constexpr (kBias) sum = _mm512_add_ps(sum, _mm512_loadu_ps(args.bias + column + v));
      if constexpr (kResidual) sum = _mm512_add_ps(sum, _mm512_loadu_ps(residual + v));
      _mm512_storeu_ps(y + v, sum);
    }
    if constexpr (kResidual) residual += args.residual_stride;
  }
}
template <typename Value>
inline void store_rows(const LinearArgs& args, int64_t panel, int64_t row_begin, int64_t rows,
                       Value&& value) {
  const int64_t column = panel * kPanelRows;
  if (column + kPanelRows > args.weight->n) {
    alignas(64) float tile[kBlockRows * kPanelRows];
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t v = 0; v < kPanelRows; v += 16)
        _mm512_store_ps(tile + i * kPanelRows + v, value(i, v));
    store_tile(args, panel, row_begin, rows, tile);
  } else if (args.bias != nullptr) {
    if (args.residual != nullptr)
      store_whole_rows<true, true>(args, column, row_begin, rows, value);
    else
      store_whole_rows<true, false>(args, column, row_begin, rows, value);
  } else if (args.residual != nullptr) {
    store_whole_rows<false, true>(args, column, row_begin, rows, value);
  } else {
    store_whole_rows<false, false>(args, column, row_begin, rows, value);
  }
}

// Scales of rows [row, …) of activations: at[i · step].
struct RowScales {
  RowScales(const Int8Rows& q, int64_t row)
      : at(q.static_scale > 0 ? &q.static_scale : q.scale + row),
        step(q.static_scale > 0 ? 0 : 1) {}
  const float* at;
  int64_t step;
};

// Brings what is added to rows [row_begin, row_end) of the panel's part of y to L1. The lines of y
// itself are left to the stores: prefetched for writing they hold L1's few places for misses that
// the tiles' loads need.
inline void prefetch_residual(const LinearArgs& args, int64_t panel, int64_t row_begin,
                              int64_t row_end) {
  if (args.residual == nullptr) return;
  for (int64_t row = row_begin; row < row_end; ++row)
    for (int64_t v = 0; v < kPanelRows; v += 16)
      __builtin_prefetch(args.residual + row * args.residual_stride + panel * kPanelRows + v);
}

}  // namespace
}  // namespace whit::cpu
