// AMX int8 tiles over the VNNI panels (kernels/cpu/linear_layout.h): C[32, 32] += A[32, K] ·
// panelᵀ.
//
// A line of a panel is 4 consecutive K of 32 rows, so 16 lines are two B tiles as they lie in
// memory. tdpbssd takes 16 × 16 outputs by 64 K in 16 clocks and 52 clocks later the result is
// there: four accumulators in turn keep the unit busy, and each loaded tile serves two products.
//
// Measured on a Xeon (4th generation), share of tdpbssd's rate without loads: A and B in L1 84 %;
// A from L2 and 16 KB of B in L1 82 %, 32 KB of B 61 %, A from L3 27 %. Storing the four
// sums and loading them again costs as much as two dozen products.
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
// Below, a tile is mostly padding and the VNNI kernels are faster.
constexpr int64_t kLeastRows = 9;

// The tile configuration of one thread, for products over `k_step` columns at a time (a multiple of
// 4, at most 64); released with the object. C: 0–3, A: 4–5, B: 6–7.
class Tiles {
 public:
  explicit Tiles(int64_t k_step) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t column_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int tile = 0; tile < 8; ++tile) {
      const bool a = tile == 4 || tile == 5, b = tile >= 6;
      config.column_bytes[tile] = static_cast<uint16_t>(a ? k_step : 64);
      config.rows[tile] = static_cast<uint8_t>(b ? k_step / 4 : kTileRows);
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Rows of activations as tiles of 16 rows × k_step columns. They are read where they lie, but for
// a last tile of fewer than 16 rows, and where rows are a multiple of 1024 bytes apart, so that
// those of many tiles would share the same few sets of L2: these are copied, row tile by row tile,
// each 1 KB further from a multiple of the cache's ways.
class ActivationTiles {
 public:
  static int64_t scratch_bytes(int64_t rows, int64_t k) {
    return round_up(rows, kTileRows) * (round_up(k, kTileColumns) + kTileColumns);
  }
  ActivationTiles(const int8_t* q, int64_t stride, int64_t rows, int64_t k, int64_t k_step,
                  int8_t* scratch)
      : q_(q), stride_(stride), k_step_(k_step), scratch_(scratch) {
    whole_ = stride % 1024 == 0 ? 0 : rows / kTileRows;
    for (int64_t first = whole_ * kTileRows; first < rows; first += kTileRows)
      for (int64_t column = 0; column < k; column += k_step)
        for (int64_t r = 0; r < kTileRows; ++r) {
          int8_t* to = scratch + (first / kTileRows - whole_) * tile_bytes() +
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
    return {scratch_ + (index - whole_) * tile_bytes() + column * kTileRows, k_step_,
            k_step_ * kTileRows};
  }

 private:
  int64_t tile_bytes() const { return (stride_ + kTileColumns) * kTileRows; }

  const int8_t* q_;
  int64_t stride_, k_step_, whole_;
  int8_t* scratch_;
};

enum class Sums { kStart, kContinue };  // from zero, or from what c holds

// c [kRowTiles · 16][32] (+)= A · linesᵀ over `steps` steps of k_step columns; after each step
// between(step) runs beside the products.
template <int kRowTiles, typename Between>
inline void multiply_tiles(ActivationTiles::Tile a, ActivationTiles::Tile second,
                           const std::byte* lines, int64_t steps, int64_t k_step, Sums sums,
                           int32_t* c, Between&& between) {
  // g++'s _tile_loadd does not say that it reads memory: what was written before must be there.
  __asm__ volatile("" ::: "memory");
  if (sums == Sums::kStart) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRowTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, c, kLineBytes);
    _tile_loadd(1, c + 16, kLineBytes);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(2, c + kSecondTile, kLineBytes);
      _tile_loadd(3, c + kSecondTile + 16, kLineBytes);
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, lines, kLineBytes);
    _tile_loadd(4, a.at, a.stride);
    _tile_loadd(7, lines + 64, kLineBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, second.at, second.stride);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    between(step);
    a.at += a.step;
    second.at += second.step;
    lines += k_step / 4 * kLineBytes;
  }
  _tile_stored(0, c, kLineBytes);
  _tile_stored(1, c + 16, kLineBytes);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, c + kSecondTile, kLineBytes);
    _tile_stored(3, c + kSecondTile + 16, kLineBytes);
  }
}
template <typename Between>
inline void multiply_tiles(const ActivationTiles& a, int64_t row, int64_t rows, int64_t column,
                           const std::byte* lines, int64_t steps, int64_t k_step, Sums sums,
                           int32_t* c, Between&& between) {
  const ActivationTiles::Tile first = a.tile(row, column);
  if (rows > kTileRows)
    multiply_tiles<2>(first, a.tile(row + kTileRows, column), lines, steps, k_step, sums, c,
                      between);
  else
    multiply_tiles<1>(first, first, lines, steps, k_step, sums, c, between);
}

// y = value(i, v) (+ bias) (+ residual) for `rows` rows from `row_begin` and the panel's 32
// columns, v being the first of 16: straight from registers, while the next products run. A panel
// that is not whole goes through store_tile.
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
    return;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t v = 0; v < kPanelRows; v += 16) {
      __m512 y = value(i, v);
      if (args.bias != nullptr) y = _mm512_add_ps(y, _mm512_loadu_ps(args.bias + column + v));
      const int64_t row = row_begin + i;
      if (args.residual != nullptr)
        y = _mm512_add_ps(y,
                          _mm512_loadu_ps(args.residual + row * args.residual_stride + column + v));
      _mm512_storeu_ps(args.y + row * args.y_stride + column + v, y);
    }
}

}  // namespace
}  // namespace whit::cpu
