// Up to 32 int8 rows over AMX panels of int4_group weights, to the bits of int4_pass.h. There a
// panel is unpacked once for many rows. Here unpacking is as much work as the products: group by
// group, to L1, with the next group's codes unpacked and the last one's sums scaled while tiles
// multiply. A tile of fewer than 16 rows takes as many clocks as it has rows.
#pragma once

#include "kernels/cpu/amx/int4_pass.h"

namespace whit::cpu {
namespace {

// Of fewer, vectors that unpack in registers are faster; measured at K = 576.
inline constexpr int64_t kLeastFewRows = 6, kMostFewRows = kBlockRows;

// Groups in turn: the codes, and the sums, of so many.
constexpr int64_t kTurns = 2;

inline int64_t few_rows_scratch_bytes(const PackedWeight& weight) {
  const int64_t columns = std::min(weight.group_size, weight.k);
  return kTurns * round_up(columns, kTileColumns) / 4 * kLineBytes;
}

// Rows of codes where tiles can read them: up to the next multiple of 64 columns.
struct FewRows {
  const int8_t* q;
  int64_t stride, count;
};

// Rows · codesᵀ over `steps` steps in tiles 0 and 1, or 2 and 3.
template <int kFirst>
inline void multiply_one_tile(const int8_t* q, int64_t stride, const std::byte* codes,
                              int64_t steps, int64_t k_step) {
  if constexpr (kFirst == 0) {
    _tile_zero(0);
    _tile_zero(1);
  } else {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step, q += k_step, codes += k_step / 4 * kLineBytes) {
    _tile_loadd(4, q, stride);
    _tile_loadd(6, codes, kLineBytes);
    _tile_loadd(7, codes + 64, kLineBytes);
    if constexpr (kFirst == 0) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
    } else {
      _tile_dpbssd(2, 4, 6);
      _tile_dpbssd(3, 4, 7);
    }
  }
}
inline void multiply_two_tiles(const int8_t* q, int64_t stride, const std::byte* codes,
                               int64_t steps, int64_t k_step) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step, q += k_step, codes += k_step / 4 * kLineBytes) {
    _tile_loadd(4, q, stride);
    _tile_loadd(6, codes, kLineBytes);
    _tile_loadd(7, codes + 64, kLineBytes);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(5, q + kTileRows * stride, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
}

// finish(panel, value) for the panels of `share`, value(i, v) being the 16 sums of row i from
// column v = 0 or 16 of the panel on. `codes` has few_rows_scratch_bytes(weight). Tiles are
// configured for rows.count rows.
template <typename Finish>
inline void multiply_int4_few_rows(const PackedWeight& weight, const LinearShare& share,
                                   const FewRows& rows, std::byte* codes, const Finish& finish) {
  const int64_t k_step = step_columns(weight),
                stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t size = std::min(weight.group_size, weight.k), groups = ceil_div(weight.k, size);
  const int64_t group_bytes = lines_of(kFormat, size) * kLineBytes + kGroupScaleBytes;
  const int64_t buffer_bytes = few_rows_scratch_bytes(weight) / kTurns;
  const auto lines_in = [&](int64_t g) {
    return lines_of(kFormat, std::min(size, weight.k - g * size));
  };

  struct Item {
    const std::byte* panel;
    int64_t index, group;
  };
  const auto lines_of_item = [&](const Item& item) {
    return item.panel + zeros_bytes(groups) + item.group * group_bytes;
  };
  const auto unpack = [&](const Item& item, std::byte* to) {
    const std::byte* lines = lines_of_item(item);
    if (item.group == 0) prefetch_ahead(item.panel, zeros_bytes(groups));
    const auto* zeros = reinterpret_cast<const uint8_t*>(item.panel) + item.group * kPanelRows;
    constexpr int64_t kLinesAtATime = 4;
    const int64_t count = lines_in(item.group);
    for (int64_t i = 0; i < count; i += kLinesAtATime, lines += kLinesAtATime * kLineBytes) {
      prefetch_ahead(lines, kLinesAtATime * kLineBytes);
      unpack_lines(lines, std::min(kLinesAtATime, count - i), zeros, to + i * 2 * kLineBytes);
    }
    prefetch_ahead(lines, kGroupScaleBytes);
  };
  alignas(64) int32_t c[kTurns][kBlockRows * kPanelRows];
  alignas(64) float acc[kBlockRows * kPanelRows];
  const auto scale = [&](const Item& item, const int32_t* sums) {
    const GroupScales group(lines_of_item(item) + lines_in(item.group) * kLineBytes);
    const auto value = [&](int64_t i, int64_t v, __m512 before) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * kPanelRows + v));
      return _mm512_fmadd_ps(group.scale[v / 16], sum, before);
    };
    const auto before = [&](int64_t i, int64_t v) {
      return item.group == 0 ? _mm512_setzero_ps() : _mm512_load_ps(acc + i * kPanelRows + v);
    };
    if (item.group + 1 == groups) {
      finish(item.index, [&](int64_t i, int64_t v) { return value(i, v, before(i, v)); });
      return;
    }
    for (int64_t i = 0; i < rows.count; ++i)
      for (int64_t v = 0; v < kPanelRows; v += 16)
        _mm512_store_ps(acc + i * kPanelRows + v, value(i, v, before(i, v)));
  };

  // The item before the one at hand, that, and the next.
  Item items[4];
  const int64_t count = (share.panel_end - share.panel_begin) * groups;
  Item last{weight.data.as<std::byte>() + share.panel_begin * stride, share.panel_begin, 0};
  const auto prepare = [&](int64_t at) {
    if (at >= count) return;
    items[at % 4] = last;
    unpack(last, codes + at % kTurns * buffer_bytes);
    if (++last.group == groups) last = {last.panel + stride, last.index + 1, 0};
  };
  const auto finish_item = [&](int64_t at) {
    if (at >= 0) scale(items[at % 4], c[at % kTurns]);
  };
  prepare(0);
  for (int64_t at = 0; at < count; ++at) {
    const Item& item = items[at % 4];
    // g++'s _tile_loadd does not say that it reads memory: what was written before must be there.
    __asm__ volatile("" ::: "memory");
    const int8_t* q = rows.q + item.group * size;
    const std::byte* now = codes + at % kTurns * buffer_bytes;
    int32_t* sums = c[at % kTurns];
    const int64_t steps = ceil_div(8 * lines_in(item.group), k_step);
    const bool two = rows.count > kTileRows, first = two || at % 2 == 0;
    if (two)
      multiply_two_tiles(q, rows.stride, now, steps, k_step);
    else if (first)
      multiply_one_tile<0>(q, rows.stride, now, steps, k_step);
    else
      multiply_one_tile<2>(q, rows.stride, now, steps, k_step);
    prepare(at + 1);
    finish_item(at - 1);
    if (first) {
      _tile_stored(0, sums, kLineBytes);
      _tile_stored(1, sums + 16, kLineBytes);
    }
    if (two || !first) {
      int32_t* second = two ? sums + kSecondTile : sums;
      _tile_stored(2, second, kLineBytes);
      _tile_stored(3, second + 16, kLineBytes);
    }
  }
  finish_item(count - 1);
}

}  // namespace
}  // namespace whit::cpu
