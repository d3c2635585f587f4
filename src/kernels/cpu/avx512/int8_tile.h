// What the AVX-512 VNNI linears of int8 products that are exact to the end have in common.
//
// vpdpbusd multiplies unsigned bytes by signed ones and sums four products into int32 without
// saturation. The unsigned side is q + 128; the sums start at −128 · Σ_k code[n, k], which is
// packed with the panel, and wrap around to the exact result.
//
// Tiles of 8 × 32 outputs: 16 accumulators and 10 loads for 16 vpdpbusd a line. Bound: one or two
// vpdpbusd a clock (by CPU), 128 operations each.
#pragma once

#include <cstring>

#include "kernels/cpu/avx512/words.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr int64_t kBlockLines = 128;  // 512 columns: 16 KB, half of the smallest L1

inline int64_t offset_row_bytes(int64_t k) { return (k + 63) / 64 * 64; }

// q + 128.
inline void offset_activations(const int8_t* q, int64_t k, uint8_t* to) {
  for (int64_t i = 0; i < k; i += 64)
    store(to + i, _mm512_xor_si512(load(q + i), _mm512_set1_epi8(static_cast<char>(0x80))));
}

// sums [MR][32] += x · lines.
template <int MR>
void multiply_tile(const std::byte* lines, int64_t count, const uint8_t* x, int64_t x_stride,
                   int32_t* sums) {
  __m512i acc[MR][kVectors];
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = load(sums + kLanes * i);
  });
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, x += 4) {
    _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 64, _MM_HINT_T0);
    const __m512i w0 = load(lines), w1 = load(lines + 64);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      int32_t word;
      std::memcpy(&word, x + m * x_stride, 4);
      const __m512i value = _mm512_set1_epi32(word);
      add_products(acc[m][0], value, w0);
      add_products(acc[m][1], value, w1);
    });
  }
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums + kLanes * i, acc[i / kVectors][i % kVectors]);
  });
}

using TileFunction = void (*)(const std::byte*, int64_t, const uint8_t*, int64_t, int32_t*);
constexpr TileFunction kTileFunctions[kTileRows] = {
    multiply_tile<1>, multiply_tile<2>, multiply_tile<3>, multiply_tile<4>,
    multiply_tile<5>, multiply_tile<6>, multiply_tile<7>, multiply_tile<8>};

// sums [rows][32] = −128 · Σ codes.
inline void start_sums(const int32_t* code_sums, int64_t rows, int32_t* sums) {
  for (int v = 0; v < kVectors; ++v) {
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(),
                                           _mm512_slli_epi32(load(code_sums + kLanes * v), 7));
    for (int64_t m = 0; m < rows; ++m) store(sums + m * kPanelRows + kLanes * v, start);
  }
}

// sums [rows][32] += x · lines, tile by tile.
inline void multiply_rows(const std::byte* lines, int64_t count, const uint8_t* x, int64_t x_stride,
                          int64_t rows, int32_t* sums) {
  for (int64_t m = 0; m < rows; m += kTileRows) {
    const int64_t tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
    kTileFunctions[tile_rows - 1](lines, count, x + m * x_stride, x_stride, sums + m * kPanelRows);
  }
}

// sums [rows][32] = x · lines of a panel of int8_channel weights.
inline void multiply_int8_panel(const std::byte* panel, int64_t count, const uint8_t* x,
                                int64_t x_stride, int64_t rows, int32_t* sums) {
  start_sums(reinterpret_cast<const int32_t*>(panel + 4 * kPanelRows), rows, sums);
  // One tile takes all of K at once: there is no second one to keep a block in L1 for.
  const int64_t block = rows <= kTileRows ? count : kBlockLines;
  const std::byte* lines = panel + kChannelHeaderBytes;
  for (int64_t line = 0; line < count; line += block)
    multiply_rows(lines + line * kLineBytes, count - line < block ? count - line : block,
                  x + 4 * line, x_stride, rows, sums);
}

// sums → f32 in place, times the scales.
inline void scale_sums(const LinearArgs& args, const float* scales, int64_t row_begin, int64_t rows,
                       int32_t* sums) {
  for (int64_t m = 0; m < rows; ++m, sums += kPanelRows) {
    const __m512 x_scale = _mm512_set1_ps(activation_scale(args.q, row_begin + m));
    for (int v = 0; v < kVectors; ++v) {
      const __m512 sum = _mm512_cvtepi32_ps(load(sums + kLanes * v));
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + kLanes * v), x_scale);
      store(sums + kLanes * v, _mm512_castps_si512(_mm512_mul_ps(sum, scale)));
    }
  }
}

inline void offset_rows(const Int8Rows& q, int64_t row_begin, int64_t rows, int64_t k, uint8_t* x) {
  for (int64_t m = 0; m < rows; ++m)
    offset_activations(q.q + (row_begin + m) * q.stride, k, x + m * offset_row_bytes(k));
}

}  // namespace
}  // namespace whit::cpu
