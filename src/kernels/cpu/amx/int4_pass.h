// A pass of int8 rows over AMX panels of int4_group weights (those of avx512/linear_w4a8):
//   acc = fma(scale[n, g], float(Σ_k (code − zero[n, g]) · q), acc) over groups g ascending
// The same bits as there. A panel's codes are unpacked once for all rows of a pass, zero points
// subtracted. Bound: with float scales every group's sums leave the tiles: storing the four and
// scaling them, between the steps of the next group, costs more than the eight products of a group
// of 128. The tiles alone, stored but not scaled, reach 61 % of tdpbssd's rate.
#pragma once

#include "kernels/cpu/amx/tiles.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;

// A group is a whole number of steps; the last one may be padded.
inline int64_t step_columns(const PackedWeight& weight) {
  return weight.group_size >= weight.k || weight.group_size % kTileColumns == 0 ? kTileColumns
                                                                                : kTileColumns / 2;
}

// A panel's codes, one byte each, in lines of 4 K.
inline int64_t unpacked_bytes(const PackedWeight& weight) {
  return round_up(weight.k, kTileColumns) / 4 * kLineBytes;
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

// acc [rows][32] += the group's scaled sums, of rows [begin, end).
inline void add_group(const int32_t* c, const std::byte* scales, int64_t begin, int64_t end,
                      float* acc) {
  __m512 scale[2];
  for (int v = 0; v < 2; ++v)
    scale[v] =
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32 * v)));
  c += begin * kPanelRows;
  acc += begin * kPanelRows;
  for (int64_t m = begin; m < end; ++m)
    for (int v = 0; v < 2; ++v, c += 16, acc += 16)
      _mm512_store_ps(acc, _mm512_fmadd_ps(scale[v], _mm512_cvtepi32_ps(_mm512_load_si512(c)),
                                           _mm512_load_ps(acc)));
}

// For the panels of `share`, block by block of 32 of the `rows` rows of a:
//   before(panel, m, from, to)   while products of the block run whose rows [from, to) are next
//   finish(panel, m, some, acc)  with acc [some][32]
// `codes` has unpacked_bytes(weight).
template <typename Before, typename Finish>
inline void multiply_int4_pass(const PackedWeight& weight, const LinearShare& share,
                               const ActivationTiles& a, int64_t rows, std::byte* codes,
                               const Before& before, const Finish& finish) {
  const int64_t k_step = step_columns(weight), step_bytes = k_step / 4 * kLineBytes;
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t size = std::min(weight.group_size, weight.k), groups = ceil_div(weight.k, size);
  const int64_t group_bytes = lines_of(kFormat, size) * kLineBytes + kGroupScaleBytes;
  const auto lines_in = [&](int64_t g) {
    return lines_of(kFormat, std::min(size, weight.k - g * size));
  };
  // In turn: a group's sums are read while the next are made.
  alignas(64) int32_t c[2][kBlockRows * kPanelRows];
  alignas(64) float acc[kBlockRows * kPanelRows];
  for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
    const std::byte* panel = weight.data.as<std::byte>() + index * stride;
    const std::byte* first = panel + zeros_bytes(groups);
    for (int64_t g = 0; g < groups; ++g)
      unpack_lines(first + g * group_bytes, lines_in(g),
                   reinterpret_cast<const uint8_t*>(panel) + g * kPanelRows,
                   codes + g * size / k_step * step_bytes);
    const auto scales_of = [&](int64_t g) {
      return first + g * group_bytes + lines_in(g) * kLineBytes;
    };
    // The next panel, while this one's products run.
    const int64_t turns = ceil_div(rows, kBlockRows) * groups;
    BlockPrefetch prefetch{panel + stride,
                           index + 1 < share.panel_end ? ceil_div(stride / 64, turns) : 0};
    const int64_t rows_a_group = ceil_div(kBlockRows, groups);
    for (int64_t m = 0; m < rows; m += kBlockRows) {
      const int64_t some = std::min(rows - m, kBlockRows);
      std::memset(acc, 0, sizeof(float) * some * kPanelRows);
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t steps = ceil_div(8 * lines_in(g), k_step);
        const Operands now = operands(a, m, some, g * size, codes + g * size / k_step * step_bytes);
        prefetch.step();
        before(index, m, std::min(g * rows_a_group, some), std::min((g + 1) * rows_a_group, some));
        // The group before is scaled between the steps of this one.
        multiply_tiles<Ahead::kNone>(now, now, steps, k_step, nullptr, c[g % 2], [&](int64_t step) {
          if (g == 0) return;
          add_group(c[(g - 1) % 2], scales_of(g - 1), some * step / steps,
                    some * (step + 1) / steps, acc);
        });
      }
      add_group(c[(groups - 1) % 2], scales_of(groups - 1), 0, some, acc);
      finish(index, m, some, acc);
    }
  }
}

}  // namespace
}  // namespace whit::cpu
