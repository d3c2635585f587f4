// A panel of int4_group weights times rows of int8 codes, over the groups g in ascending order:
//   sums[m, n] = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), sums[m, n])
//
// By the products of int4_lines.h. M ≤ 16: codes are unpacked in registers, two operations a
// register. More: a group's codes are unpacked to scratch, one byte each. Tiles of 8 × 32 outputs.
#pragma once

#include "kernels/cpu/avx512/int4_lines.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;

// One group of a panel and the rows of activations it meets.
struct GroupArgs {
  const std::byte* codes;  // lines as packed, or unpacked
  int64_t lines;
  const std::byte* scales;  // f16 [32]
  const uint8_t* zeros;     // [32]
  const int8_t* q;
  int64_t q_stride;
  const int32_t* group_sums;
  int64_t group_sums_stride;
  float* sums;  // [rows][32]
};

// sums [MR][32] += the group's dot products, scaled.
template <int MR, Int4Lines codes>
void multiply_group(const GroupArgs& args) {
  __m512 scale[kVectors];
  __m512i zero[kVectors];
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    scale[v] = _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(args.scales + 2 * kLanes * v)));
    zero[v] = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.zeros + kLanes * v)));
  });
  multiply_int4_lines<MR, codes>(
      args.codes, args.lines, args.q,
      args.q_stride, [&](int m, int v, __m512i dot) __attribute__((always_inline)) {
        const __m512i sum = _mm512_set1_epi32(args.group_sums[m * args.group_sums_stride]);
        dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero[v], sum));
        float* at = args.sums + m * kPanelRows + kLanes * v;
        _mm512_storeu_ps(at,
                         _mm512_fmadd_ps(scale[v], _mm512_cvtepi32_ps(dot), _mm512_loadu_ps(at)));
      });
}

using GroupFunction = void (*)(const GroupArgs&);
template <Int4Lines codes>
constexpr GroupFunction kGroupFunctions[kTileRows] = {
    multiply_group<1, codes>, multiply_group<2, codes>, multiply_group<3, codes>,
    multiply_group<4, codes>, multiply_group<5, codes>, multiply_group<6, codes>,
    multiply_group<7, codes>, multiply_group<8, codes>};

inline void unpack_lines(const std::byte* lines, int64_t count, std::byte* codes) {
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, codes += kUnpackedLineBytes)
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
      const __m512i words = load(lines + 64 * v);
      store(codes + 64 * v, low_nibbles(words));
      store(codes + kLineBytes + 64 * v, high_nibbles(words));
    });
}

template <Int4Lines codes>
void multiply_rows(const GroupArgs& whole, int64_t rows) {
  for (int64_t m = 0; m < rows; m += kTileRows) {
    GroupArgs args = whole;
    args.q += m * whole.q_stride;
    args.group_sums += m * whole.group_sums_stride;
    args.sums += m * kPanelRows;
    const int64_t tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
    kGroupFunctions<codes>[tile_rows - 1](args);
  }
}

// Unpacked codes of one group.
inline int64_t unpacked_bytes(const PackedWeight& weight) {
  const int64_t columns = weight.group_size < weight.k ? weight.group_size : weight.k;
  return lines_of(kFormat, columns) * kUnpackedLineBytes;
}

// Rows of codes and their sums by group.
struct CodeRows {
  const int8_t* q;
  int64_t stride;
  const int32_t* group_sums;
  int64_t count;
};

// `unpacked` has unpacked_bytes(weight); sums [rows][32].
inline void multiply_int4_panel(const PackedWeight& weight, const std::byte* panel,
                                const CodeRows& rows, std::byte* unpacked, float* sums) {
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  std::memset(sums, 0, 4 * kPanelRows * rows.count);
  prefetch_ahead(panel, zeros_bytes(groups));
  const auto* zeros = reinterpret_cast<const uint8_t*>(panel);
  panel += zeros_bytes(groups);
  for (int64_t g = 0; g < groups; ++g, zeros += kPanelRows) {
    const int64_t left = weight.k - g * weight.group_size;
    const int64_t lines = lines_of(kFormat, left < weight.group_size ? left : weight.group_size);
    GroupArgs group{.codes = panel,
                    .lines = lines,
                    .scales = panel + lines * kLineBytes,
                    .zeros = zeros,
                    .q = rows.q + g * weight.group_size,
                    .q_stride = rows.stride,
                    .group_sums = rows.group_sums + g,
                    .group_sums_stride = groups,
                    .sums = sums};
    if (rows.count <= kMostInlineRows) {
      multiply_rows<Int4Lines::kPacked>(group, rows.count);
    } else {
      unpack_lines(panel, lines, unpacked);
      group.codes = unpacked;
      multiply_rows<Int4Lines::kUnpacked>(group, rows.count);
    }
    prefetch_ahead(panel + lines * kLineBytes, kGroupScaleBytes);
    panel += lines * kLineBytes + kGroupScaleBytes;
  }
}

}  // namespace
}  // namespace whit::cpu
