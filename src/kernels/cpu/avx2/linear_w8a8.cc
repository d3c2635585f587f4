// AVX2 linears of int8_channel weights and int8 activations:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
//
// vpmaddubsw would need unsigned weights and saturates with 8-bit ones, so both sides are widened
// to int16 for vpmaddwd, which is exact: two products of int16 summed in int32. Weights widen in
// two operations per register, columns 0 and 2 of a word in one, 1 and 3 in the other; activations
// are widened once per call in the same order.
//
// M ≤ 4: words are widened in registers. M > 4: blocks of 512 columns are widened to scratch, then
// used by tiles of 6 × 16 outputs. Bound: two vpmaddwd a clock, 64 operations a clock and core
// (vpmaddwd and vpaddd alternate, so no more than half of four vector operations a clock are
// products either).
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;
constexpr int kLanes = 8;
constexpr int kTileRows = 6, kTileVectors = 2, kTileColumns = kTileVectors * kLanes;
constexpr int64_t kBlockLines = 128;  // 512 columns: 16 rows of int16 are 16 KB, half of L1
constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kLeastBlockRows = 48, kMostBlockRows = 192;
constexpr int64_t kPrefetchBytes = 8192;
constexpr int64_t kMostInlineRows = 4;

inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}
inline __m256i broadcast(const int32_t* from) { return _mm256_set1_epi32(*from); }

// Columns 0 and 2, and 1 and 3, of each word as pairs of int16.
inline __m256i widen_even(__m256i words) {
  return _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
}
inline __m256i widen_odd(__m256i words) { return _mm256_srai_epi16(words, 8); }

inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// Words of a widened row of activations: two per line.
int64_t widened_words(int64_t k) { return (k + 31) / 32 * 16; }

void widen_activations(const int8_t* q, int64_t k, int32_t* to) {
  for (int64_t i = 0; i < k; i += 32, to += 16) {
    const __m256i words = load(q + i);
    const __m256i even = widen_even(words), odd = widen_odd(words);
    const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
    store(to, _mm256_permute2x128_si256(low, high, 0x20));
    store(to + 8, _mm256_permute2x128_si256(low, high, 0x31));
  }
}

// sums [MR][32] = x · lines, for kVectors registers of rows from the one at `lines` on.
template <int MR, int kVectors>
void multiply_lines(const std::byte* lines, int64_t count, const int32_t* x, int64_t x_stride,
                    int32_t* sums) {
  __m256i acc[MR][kVectors];
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = _mm256_setzero_si256();
  });
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, x += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes, _MM_HINT_T0);
    if constexpr (kVectors > 2)
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 64, _MM_HINT_T0);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      const __m256i words = load(lines + 32 * v);
      const __m256i even = widen_even(words), odd = widen_odd(words);
      repeat<MR>([&](auto m) __attribute__((always_inline)) {
        acc[m][v] = add_products(acc[m][v], even, broadcast(x + m * x_stride));
        acc[m][v] = add_products(acc[m][v], odd, broadcast(x + m * x_stride + 1));
      });
    });
  }
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums + i / kVectors * kPanelRows + kLanes * (i % kVectors),
          acc[i / kVectors][i % kVectors]);
  });
}

void multiply_panel(const std::byte* lines, int64_t count, const int32_t* x, int64_t x_stride,
                    int64_t rows, int32_t* sums) {
  const std::byte* second = lines + 4 * kTileColumns;
  switch (rows) {
    case 1:
      multiply_lines<1, 4>(lines, count, x, x_stride, sums);
      break;
    case 2:
      multiply_lines<2, 4>(lines, count, x, x_stride, sums);
      break;
    case 3:
      multiply_lines<3, 2>(lines, count, x, x_stride, sums);
      multiply_lines<3, 2>(second, count, x, x_stride, sums + kTileColumns);
      break;
    default:
      multiply_lines<4, 2>(lines, count, x, x_stride, sums);
      multiply_lines<4, 2>(second, count, x, x_stride, sums + kTileColumns);
  }
}

// Lines → int16 pairs [2 halves of the panel][2 · kBlockLines][16].
void widen_lines(const std::byte* lines, int64_t count, int32_t* block) {
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, block += 2 * kTileColumns)
    repeat<4>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 32 * v, _MM_HINT_T0);
      const __m256i words = load(lines + 32 * v);
      int32_t* to =
          block + v / kTileVectors * (2 * kBlockLines * kTileColumns) + v % kTileVectors * kLanes;
      store(to, widen_even(words));
      store(to + kTileColumns, widen_odd(words));
    });
}

// sums [MR][32] += x · block over `pairs` words, for 16 rows of the panel.
template <int MR>
void multiply_tile(const int32_t* block, int64_t pairs, const int32_t* x, int64_t x_stride,
                   int32_t* sums) {
  __m256i acc[MR][kTileVectors];
  repeat<MR * kTileVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kTileVectors][i % kTileVectors] =
        load(sums + i / kTileVectors * kPanelRows + kLanes * (i % kTileVectors));
  });
  for (int64_t i = 0; i < pairs; ++i, block += kTileColumns) {
    const __m256i w0 = load(block), w1 = load(block + kLanes);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m256i value = broadcast(x + m * x_stride + i);
      acc[m][0] = add_products(acc[m][0], w0, value);
      acc[m][1] = add_products(acc[m][1], w1, value);
    });
  }
  repeat<MR * kTileVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums + i / kTileVectors * kPanelRows + kLanes * (i % kTileVectors),
          acc[i / kTileVectors][i % kTileVectors]);
  });
}

using TileFunction = void (*)(const int32_t*, int64_t, const int32_t*, int64_t, int32_t*);
constexpr TileFunction kTileFunctions[kTileRows] = {multiply_tile<1>, multiply_tile<2>,
                                                    multiply_tile<3>, multiply_tile<4>,
                                                    multiply_tile<5>, multiply_tile<6>};

void multiply_panel_blocked(const std::byte* lines, int64_t count, const int32_t* x,
                            int64_t x_stride, int64_t rows, int32_t* block, int32_t* sums) {
  std::memset(sums, 0, 4 * kPanelRows * rows);
  for (int64_t line = 0; line < count; line += kBlockLines) {
    const int64_t some = count - line < kBlockLines ? count - line : kBlockLines;
    widen_lines(lines + line * kLineBytes, some, block);
    for (int half = 0; half < 2; ++half)
      for (int64_t m = 0; m < rows; m += kTileRows) {
        const int64_t tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
        kTileFunctions[tile_rows - 1](block + half * (2 * kBlockLines * kTileColumns), 2 * some,
                                      x + m * x_stride + 2 * line, x_stride,
                                      sums + m * kPanelRows + half * kTileColumns);
      }
  }
}

// sums → f32 in place, times the scales.
void scale_sums(const LinearArgs& args, const std::byte* panel, int64_t row_begin, int64_t rows,
                int32_t* sums) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  for (int64_t m = 0; m < rows; ++m, sums += kPanelRows) {
    const __m256 x_scale = _mm256_set1_ps(activation_scale(args.q, row_begin + m));
    for (int v = 0; v < 4; ++v) {
      const __m256 sum = _mm256_cvtepi32_ps(load(sums + kLanes * v));
      const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + kLanes * v), x_scale);
      store(sums + kLanes * v, _mm256_castps_si256(_mm256_mul_ps(sum, scale)));
    }
  }
}

// Rows of activations per block: widened, they should stay in L2 while all panels pass by.
int64_t block_rows(int64_t k, int64_t m) {
  int64_t rows = kBlockBytes / (2 * k);
  rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
  rows -= rows % kTileRows;
  return rows < m ? rows : m;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  const int64_t rows = block_rows(weight.k, m);
  return 4 * (4 * kBlockLines * kTileColumns + rows * (kPanelRows + widened_words(weight.k)));
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0), lines = lines_of(kFormat, weight.k);
  const int64_t most_rows = block_rows(weight.k, args.m), x_stride = widened_words(weight.k);
  auto* block =
      reinterpret_cast<int32_t*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  int32_t* sums = block + 4 * kBlockLines * kTileColumns;
  int32_t* x = sums + most_rows * kPanelRows;
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    for (int64_t m = 0; m < rows; ++m)
      widen_activations(args.q.q + (begin + m) * args.q.stride, weight.k, x + m * x_stride);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* codes = panel + kChannelHeaderBytes;
      if (rows <= kMostInlineRows)
        multiply_panel(codes, lines, x, x_stride, rows, sums);
      else
        multiply_panel_blocked(codes, lines, x, x_stride, rows, block, sums);
      scale_sums(args, panel, begin, rows, sums);
      store_tile(args, index, begin, rows, reinterpret_cast<const float*>(sums));
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx2LinearW8A8 = {.name = "avx2/linear_w8a8",
                                                .format = kFormat,
                                                .activation = Activation::kInt8,
                                                .isa = Isa::kAvx2,
                                                .packed_bytes = packed_bytes<kFormat>,
                                                .pack = pack_panels<kFormat>,
                                                .scratch_bytes = scratch_bytes,
                                                .run = run};

}  // namespace whit::cpu
