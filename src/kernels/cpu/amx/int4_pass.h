// A pass of int8 rows over AMX panels of int4_group weights (those of avx512/linear_w4a8):
//   acc = fma(scale[n, g], float(Σ_k (code − zero[n, g]) · q), acc) over groups g ascending
// The same bits as there. A group's codes are unpacked, zero points subtracted, into the tiles
// where they stay for 128 rows.
//
// Bound: every group's sums leave the tiles and are scaled: two tilestored of 22 clocks beside the
// four products of a group of 128, which they do not overlap with. A loop of that alone, all but A
// in L1, reaches 54 % of tdpbssd's rate, 45 % with sums that are scaled.
#pragma once

#include "kernels/cpu/amx/tiles.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;
constexpr int64_t kMostHeldColumns = 2 * kTileColumns;

// A group is a whole number of steps; the last one may be padded.
inline int64_t step_columns(const PackedWeight& weight) {
  return weight.group_size >= weight.k || weight.group_size % kTileColumns == 0 ? kTileColumns
                                                                                : kTileColumns / 2;
}

// Whether a group's codes fit the tiles that multiply_held_panel has for them.
inline bool holds_groups(const PackedWeight& weight) {
  return step_columns(weight) == kTileColumns &&
         std::min(weight.group_size, weight.k) <= kMostHeldColumns;
}

// Of the codes of a panel whose groups are not held, one byte each in lines of 4 K.
inline int64_t unpacked_bytes(const PackedWeight& weight) {
  return holds_groups(weight) ? 0 : round_up(weight.k, kTileColumns) / 4 * kLineBytes;
}

// Codes − zero points. Columns past the last have activations of zero.
inline void unpack_lines(const std::byte* lines, int64_t count, const uint8_t* zeros,
                         std::byte* codes) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i zero[2];
  for (int v = 0; v < 2; ++v)
    zero[v] = _mm512_mullo_epi32(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + 16 * v))),
        _mm512_set1_epi32(0x01010101));
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, codes += 2 * kLineBytes)
    for (int v = 0; v < 2; ++v) {
      const __m512i words = _mm512_loadu_si512(lines + 64 * v);
      _mm512_storeu_si512(codes + 64 * v, _mm512_sub_epi8(_mm512_and_si512(words, mask), zero[v]));
      _mm512_storeu_si512(
          codes + kLineBytes + 64 * v,
          _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(words, 4), mask), zero[v]));
    }
}

// A group's scales of a panel's rows.
struct GroupScales {
  explicit GroupScales(const std::byte* f16) {
    for (int v = 0; v < 2; ++v)
      scale[v] =
          _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(f16 + 32 * v)));
  }
  __m512 scale[2];
};

// acc [rows][32] += the group's scaled sums c, of rows [begin, end).
inline void add_group(const int32_t* c, const GroupScales& group, int64_t begin, int64_t end,
                      float* acc) {
  c += begin * kPanelRows;
  acc += begin * kPanelRows;
  for (int64_t m = begin; m < end; ++m)
    for (int v = 0; v < 2; ++v, c += 16, acc += 16)
      _mm512_store_ps(acc, _mm512_fmadd_ps(group.scale[v], _mm512_cvtepi32_ps(_mm512_load_si512(c)),
                                           _mm512_load_ps(acc)));
}

// A panel of int4_group weights, by groups.
struct Int4Panel {
  Int4Panel(const PackedWeight& w, int64_t index)
      : k(w.k),
        size(std::min(w.group_size, w.k)),
        groups(ceil_div(k, size)),
        k_step(step_columns(w)),
        bytes(panel_bytes(kFormat, k, w.group_size)),
        packed(w.data.as<std::byte>() + index * bytes) {}
  int64_t lines(int64_t g) const { return lines_of(kFormat, std::min(size, k - g * size)); }
  int64_t steps(int64_t g) const { return ceil_div(8 * lines(g), k_step); }
  const std::byte* scales(int64_t g) const { return group(g) + lines(g) * kLineBytes; }
  void unpack(int64_t g, std::byte* codes) const {
    unpack_lines(group(g), lines(g), reinterpret_cast<const uint8_t*>(packed) + g * kPanelRows,
                 codes);
  }

  int64_t k, size, groups, k_step, bytes;
  const std::byte* packed;

 private:
  const std::byte* group(int64_t g) const {
    return packed + zeros_bytes(groups) +
           g * (lines_of(kFormat, size) * kLineBytes + kGroupScaleBytes);
  }
};

// c [16][32] = A · linesᵀ over one or two steps of 64 columns, A being 16 rows and the lines in
// tiles 4 … 7. between(half) runs beside the products, twice.
template <typename Between>
inline void multiply_held(const ActivationTiles::Tile& a, int64_t steps, int32_t* c,
                          Between&& between) {
  __asm__ volatile("" ::: "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(2, a.at, a.stride);
  _tile_dpbssd(0, 2, 4);
  _tile_dpbssd(1, 2, 5);
  between(0);
  if (steps == 2) {
    _tile_loadd(2, a.at + a.step, a.stride);
    _tile_dpbssd(0, 2, 6);
    _tile_dpbssd(1, 2, 7);
  }
  between(1);
  _tile_stored(0, c, kLineBytes);
  _tile_stored(1, c + 16, kLineBytes);
  __asm__ volatile("" ::: "memory");
}
inline void hold_lines(const std::byte* lines, int64_t steps) {
  constexpr int64_t kStep = kTileColumns / 4 * kLineBytes;
  __asm__ volatile("" ::: "memory");
  _tile_loadd(4, lines, kLineBytes);
  _tile_loadd(5, lines + 64, kLineBytes);
  if (steps < 2) return;
  _tile_loadd(6, lines + kStep, kLineBytes);
  _tile_loadd(7, lines + kStep + 64, kLineBytes);
}

// One panel of multiply_int4_pass, in whose tiles a group's codes stay for kHeldRows rows: half the
// loads of multiply_blocks.
template <typename Before, typename Finish>
inline void multiply_held_panel(const Int4Panel& panel, int64_t index, const ActivationTiles& a,
                                int64_t rows, int64_t prefetch_bytes, const Before& before,
                                const Finish& finish) {
  constexpr int64_t kHeldRows = 128;  // their sums, 16 KB, stay in L1
  // In turn: a tile's sums are read while the next ones are made.
  alignas(64) int32_t c[2][kTileRows * kPanelRows];
  alignas(64) float acc[kHeldRows * kPanelRows];
  alignas(64) std::byte codes[kMostHeldColumns / 4 * kLineBytes];
  const int64_t turns = ceil_div(rows, kTileRows) * panel.groups;
  BlockPrefetch prefetch{panel.packed + panel.bytes, ceil_div(prefetch_bytes / 64, turns)};
  for (int64_t m = 0; m < rows; m += kHeldRows) {
    const int64_t some = std::min(rows - m, kHeldRows), tiles = ceil_div(some, kTileRows);
    const int64_t rows_a_group = ceil_div(some, panel.groups);
    std::memset(acc, 0, sizeof(float) * tiles * kTileRows * kPanelRows);
    int64_t turn = 0;
    float* to = nullptr;  // where the sums of the tile before belong
    GroupScales scales(panel.scales(0));
    for (int64_t g = 0; g < panel.groups; ++g) {
      const int64_t steps = panel.steps(g);
      panel.unpack(g, codes);
      hold_lines(codes, steps);
      const GroupScales next_scales(panel.scales(g));
      before(index, m, std::min(g * rows_a_group, some), std::min((g + 1) * rows_a_group, some));
      for (int64_t tile = 0; tile < tiles; ++tile, ++turn) {
        prefetch.step();
        const int32_t* sums = c[(turn + 1) % 2];
        multiply_held(
            a.tile(m + tile * kTileRows, g * panel.size), steps, c[turn % 2], [&](int64_t half) {
              if (to == nullptr) return;
              add_group(sums, scales, half * kTileRows / 2, (half + 1) * kTileRows / 2, to);
            });
        to = acc + tile * kTileRows * kPanelRows;
        scales = next_scales;
      }
    }
    add_group(c[(turn + 1) % 2], scales, 0, kTileRows, to);
    for (int64_t row = 0; row < some; row += kBlockRows)
      finish(index, m + row, std::min(some - row, kBlockRows), acc + row * kPanelRows);
  }
}

// The same for groups of any size, block by block of 32 rows. `codes` has unpacked_bytes.
template <typename Before, typename Finish>
inline void multiply_blocks(const Int4Panel& panel, int64_t index, const ActivationTiles& a,
                            int64_t rows, int64_t prefetch_bytes, std::byte* codes,
                            const Before& before, const Finish& finish) {
  alignas(64) int32_t c[2][kBlockRows * kPanelRows];
  alignas(64) float acc[kBlockRows * kPanelRows];
  const int64_t groups = panel.groups, rows_a_group = ceil_div(kBlockRows, groups);
  const auto codes_of = [&](int64_t g) { return codes + g * panel.size / 4 * kLineBytes; };
  for (int64_t g = 0; g < groups; ++g) panel.unpack(g, codes_of(g));
  const int64_t turns = ceil_div(rows, kBlockRows) * groups;
  BlockPrefetch prefetch{panel.packed + panel.bytes, ceil_div(prefetch_bytes / 64, turns)};
  for (int64_t m = 0; m < rows; m += kBlockRows) {
    const int64_t some = std::min(rows - m, kBlockRows);
    std::memset(acc, 0, sizeof(float) * some * kPanelRows);
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t steps = panel.steps(g);
      const Operands now = operands(a, m, some, g * panel.size, codes_of(g));
      prefetch.step();
      before(index, m, std::min(g * rows_a_group, some), std::min((g + 1) * rows_a_group, some));
      // The group before is scaled between the steps of this one.
      multiply_tiles<Ahead::kNone>(now, now, steps, panel.k_step, nullptr, c[g % 2],
                                   [&](int64_t step) {
                                     if (g == 0) return;
                                     add_group(c[(g - 1) % 2], GroupScales(panel.scales(g - 1)),
                                               some * step / steps, some * (step + 1) / steps, acc);
                                   });
    }
    add_group(c[(groups - 1) % 2], GroupScales(panel.scales(groups - 1)), 0, some, acc);
    finish(index, m, some, acc);
  }
}

// For the panels of `share` and the `rows` rows of a:
//   before(panel, m, from, to)   while products run that lead to rows [m + from, m + to)
//   finish(panel, m, some, acc)  with acc [some][32], some being at most 32
// `codes` has unpacked_bytes(weight).
template <typename Before, typename Finish>
inline void multiply_int4_pass(const PackedWeight& weight, const LinearShare& share,
                               const ActivationTiles& a, int64_t rows, std::byte* codes,
                               const Before& before, const Finish& finish) {
  for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
    const Int4Panel panel(weight, index);
    // The next panel, while this one's products run.
    const int64_t prefetch_bytes = index + 1 < share.panel_end ? panel.bytes : 0;
    if (holds_groups(weight))
      multiply_held_panel(panel, index, a, rows, prefetch_bytes, before, finish);
    else
      multiply_blocks(panel, index, a, rows, prefetch_bytes, codes, before, finish);
  }
}

}  // namespace
}  // namespace whit::cpu
