// AVX2 linears of int8_channel weights:
//   int8 activations   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m])
//   f32 activations    the same with q of int16 (int16.h), in runs of 1024 columns whose sums are
//                      added in f32, ascending
//   (+ bias) (+ residual)
//
// vpmaddubsw would need unsigned weights and saturates with 8-bit ones, so both sides are widened
// to int16 for vpmaddwd: weights in two operations a register, activations once per call.
//
// M ≤ 4: words are widened in registers. M > 4: blocks of 512 columns are widened to scratch, then
// used by tiles of 6 × 16 outputs. Bound: two vpmaddwd a clock, 64 operations a clock and core
// (vpmaddwd and vpaddd alternate, so no more than half of four vector operations a clock are
// products either).
#include "kernels/cpu/avx2/int16.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;
constexpr int64_t kBlockLines = 128;  // 512 columns: 16 rows of int16 are 16 KB, half of L1
constexpr int64_t kRunLines = kInt16Columns / 4;
constexpr int64_t kMostInlineRows = 4;

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
        add_products(acc[m][v], even, broadcast(x + m * x_stride));
        add_products(acc[m][v], odd, broadcast(x + m * x_stride + 1));
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
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
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
  add_pairs<MR>(block, pairs, x, x_stride, acc);
  repeat<MR * kTileVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums + i / kTileVectors * kPanelRows + kLanes * (i % kTileVectors),
          acc[i / kTileVectors][i % kTileVectors]);
  });
}

using TileFunction = void (*)(const int32_t*, int64_t, const int32_t*, int64_t, int32_t*);
constexpr TileFunction kTileFunctions[kPairTileRows] = {multiply_tile<1>, multiply_tile<2>,
                                                        multiply_tile<3>, multiply_tile<4>,
                                                        multiply_tile<5>, multiply_tile<6>};

void multiply_panel_blocked(const std::byte* lines, int64_t count, const int32_t* x,
                            int64_t x_stride, int64_t rows, int32_t* block, int32_t* sums) {
  const int64_t tile = even_tile(rows, kPairTileRows);
  std::memset(sums, 0, 4 * kPanelRows * rows);
  for (int64_t line = 0; line < count; line += kBlockLines) {
    const int64_t some = count - line < kBlockLines ? count - line : kBlockLines;
    widen_lines(lines + line * kLineBytes, some, block);
    for (int half = 0; half < 2; ++half)
      for (int64_t m = 0; m < rows; m += tile) {
        const int64_t tile_rows = rows - m < tile ? rows - m : tile;
        kTileFunctions[tile_rows - 1](block + half * (2 * kBlockLines * kTileColumns), 2 * some,
                                      x + m * x_stride + 2 * line, x_stride,
                                      sums + m * kPanelRows + half * kTileColumns);
      }
  }
}

// acc [rows][32] += float(sums), or = where `first`.
void add_sums(const int32_t* sums, int64_t rows, bool first, float* acc) {
  for (int64_t i = 0; i < rows * kPanelRows; i += kLanes) {
    const __m256 sum = _mm256_cvtepi32_ps(load(sums + i));
    _mm256_storeu_ps(acc + i, first ? sum : _mm256_add_ps(_mm256_loadu_ps(acc + i), sum));
  }
}

// Times the scales of the panel's rows and of the activations.
void scale_sums(const std::byte* panel, const float* x_scales, int64_t rows, float* acc) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  for (int64_t m = 0; m < rows; ++m, acc += kPanelRows) {
    const __m256 x_scale = _mm256_set1_ps(x_scales[m]);
    for (int v = 0; v < kPanelVectors; ++v) {
      const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + kLanes * v), x_scale);
      _mm256_storeu_ps(acc + kLanes * v, _mm256_mul_ps(_mm256_loadu_ps(acc + kLanes * v), scale));
    }
  }
}

// A worker's scratch.
struct Scratch {
  int64_t rows, x_stride;  // of activations at a time; words between them

  Scratch(const PackedWeight& weight, int64_t m)
      : rows(pair_block_rows(weight.k, m)), x_stride(pair_words(weight.k)) {}
  static constexpr int64_t kBlockWords = 4 * kBlockLines * kTileColumns;
  int64_t bytes() const {
    return 4 * (kBlockWords + rows * (2 * kPanelRows + x_stride) + round_up(rows, 16));
  }
};

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) { return Scratch(weight, m).bytes(); }

template <Activation activation>
void run(const LinearArgs& args, const Worker& worker) {
  constexpr bool kInt16 = activation == Activation::kFloat;
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kPairTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0), lines = lines_of(kFormat, weight.k);
  const int64_t run_lines = kInt16 ? kRunLines : lines;
  const Scratch sizes(weight, args.m);
  auto* block = reinterpret_cast<int32_t*>(worker_scratch(args, sizes.bytes(), worker));
  int32_t* sums = block + Scratch::kBlockWords;
  auto* acc = reinterpret_cast<float*>(sums + sizes.rows * kPanelRows);
  int32_t* x = sums + 2 * sizes.rows * kPanelRows;
  auto* x_scales = reinterpret_cast<float*>(x + sizes.rows * sizes.x_stride);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = share.row_end - begin < sizes.rows ? share.row_end - begin : sizes.rows;
    for (int64_t m = 0; m < rows; ++m) {
      int32_t* to = x + m * sizes.x_stride;
      if constexpr (kInt16) {
        x_scales[m] = quantize_row(args.x + (begin + m) * args.x_stride, weight.k, to);
      } else {
        widen_row(args.q.q + (begin + m) * args.q.stride, weight.k, to);
        x_scales[m] = activation_scale(args.q, begin + m);
      }
    }
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* codes = panel + kChannelHeaderBytes;
      prefetch_ahead(panel, kChannelHeaderBytes);
      for (int64_t line = 0; line < lines; line += run_lines) {
        const int64_t count = lines - line < run_lines ? lines - line : run_lines;
        if (rows <= kMostInlineRows)
          multiply_panel(codes + line * kLineBytes, count, x + 2 * line, sizes.x_stride, rows,
                         sums);
        else
          multiply_panel_blocked(codes + line * kLineBytes, count, x + 2 * line, sizes.x_stride,
                                 rows, block, sums);
        add_sums(sums, rows, line == 0, acc);
      }
      scale_sums(panel, x_scales, rows, acc);
      store_tile(args, index, begin, rows, acc);
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
                                                .run = run<Activation::kInt8>};

constinit const LinearKernel kAvx2LinearW8A16 = {.name = "avx2/linear_w8a16",
                                                 .format = kFormat,
                                                 .activation = Activation::kFloat,
                                                 .isa = Isa::kAvx2,
                                                 .packed_bytes = packed_bytes<kFormat>,
                                                 .pack = pack_panels<kFormat>,
                                                 .scratch_bytes = scratch_bytes,
                                                 .run = run<Activation::kFloat>,
                                                 .activation_error = 0.5f / kLargestInt16};

}  // namespace whit::cpu
