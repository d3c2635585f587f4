// AMX int8 tiles over the VNNI panels (kernels/cpu/linear_layout.h): C[32, 32] += A[32, K] ·
// panelᵀ.
//
// A line of a panel is 4 consecutive K of 32 rows, so 16 lines are two B tiles as they lie in
// memory. tdpbssd takes 16 × 16 outputs by 64 K in 16 clocks and 52 clocks later the result is
// there: four accumulators in turn keep the unit busy, and each loaded tile serves two products.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTileColumns = 64;
constexpr int64_t kBlockRows = 2 * kTileRows;  // of C
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

// A as tiles: [row tiles][steps][16][k_step], rows beyond `rows` and columns beyond the row's
// stride zero.
inline int64_t tiles_bytes(int64_t rows, int64_t k, int64_t k_step) {
  return round_up(rows, kTileRows) * round_up(k, k_step);
}
inline void pack_tiles(const int8_t* q, int64_t stride, int64_t rows, int64_t k, int64_t k_step,
                       int8_t* to) {
  for (int64_t first = 0; first < rows; first += kTileRows)
    for (int64_t column = 0; column < k; column += k_step)
      for (int64_t r = first; r < first + kTileRows; ++r, to += k_step) {
        if (r < rows)
          std::memcpy(to, q + r * stride + column, k_step);
        else
          std::memset(to, 0, k_step);
      }
}

enum class Sums { kStart, kContinue };  // from zero, or from what c holds

// c [kRowTiles · 16][32] (+)= A · linesᵀ over `steps` steps; A's row tiles are `a_stride` bytes
// apart.
template <int kRowTiles>
inline void multiply_tiles(const int8_t* a, int64_t a_stride, const std::byte* lines, int64_t steps,
                           int64_t k_step, Sums sums, int32_t* c) {
  constexpr int64_t kSecond = kTileRows * kPanelRows;
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
      _tile_loadd(2, c + kSecond, kLineBytes);
      _tile_loadd(3, c + kSecond + 16, kLineBytes);
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, lines, kLineBytes);
    _tile_loadd(4, a, k_step);
    _tile_loadd(7, lines + 64, kLineBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, a + a_stride, k_step);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
    a += kTileRows * k_step;
    lines += k_step / 4 * kLineBytes;
  }
  _tile_stored(0, c, kLineBytes);
  _tile_stored(1, c + 16, kLineBytes);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, c + kSecond, kLineBytes);
    _tile_stored(3, c + kSecond + 16, kLineBytes);
  }
}
inline void multiply_tiles(int64_t rows, const int8_t* a, int64_t a_stride, const std::byte* lines,
                           int64_t steps, int64_t k_step, Sums sums, int32_t* c) {
  if (rows > kTileRows)
    multiply_tiles<2>(a, a_stride, lines, steps, k_step, sums, c);
  else
    multiply_tiles<1>(a, a_stride, lines, steps, k_step, sums, c);
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

// Rows of activations per pass over the panels: they should stay in L2.
inline int64_t pass_rows(int64_t k, int64_t m) {
  constexpr int64_t kPassBytes = 768 << 10, kMost = 1024;
  const int64_t rows = std::clamp(kPassBytes / k / kBlockRows * kBlockRows, kBlockRows, kMost);
  return std::min(rows, m);
}

}  // namespace
}  // namespace whit::cpu
