// Passes of AMX's linears whose sums of int8 products are exact to the end:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
// Panels begin with their rows' scales.
//
// Columns are cut in blocks of about 512: a block of a panel, 16 KB, stays in L1 while all rows of
// a pass go by, whose activations stay in L2; the next block is prefetched to L2 meanwhile.
#pragma once

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/two_level.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr int64_t kMostBlockColumns = 576;
constexpr int64_t kStepBytes = kTileColumns / 4 * kLineBytes;
constexpr int64_t kBlockBytes = kMostBlockColumns / kTileColumns * kStepBytes;

// What to bring to L2 while products run: `lines` cache lines at each step.
struct BlockPrefetch {
  const std::byte* next = nullptr;
  int64_t lines = 0;
  void step() {
    for (int64_t i = 0; i < lines; ++i, next += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
  }
};

// How a product is cut: passes of `rows` rows; within a pass chunks of `panels` panels, whose sums
// [panels][rows][32] stay in L2 with a block of the activations; within a chunk blocks of columns.
struct Passes {
  int64_t rows, panels;
};
inline Passes passes(const PackedWeight& weight, int64_t m) {
  // Copies of activations, where such are made, at most 4 MB; a block of 512 rows is 256 KB.
  constexpr int64_t kPassBytes = 4 << 20, kMostRows = 512, kChunkBytes = 512 << 10;
  const int64_t rows = std::min(
      m, std::clamp(kPassBytes / weight.k / kBlockRows * kBlockRows, kBlockRows, kMostRows));
  const int64_t sums = round_up(rows, kBlockRows) * kLineBytes;
  const int64_t panels = ceil_div(weight.n, kPanelRows);
  return {rows, std::clamp<int64_t>(kChunkBytes / sums, 1, panels)};
}
inline int64_t sums_bytes(const Passes& pass) {
  return pass.panels * round_up(pass.rows, kBlockRows) * kLineBytes;
}

// Columns of a block: about equal ones.
inline int64_t block_columns(int64_t k) {
  const int64_t steps = ceil_div(k, kTileColumns), most = kMostBlockColumns / kTileColumns;
  return ceil_div(steps, ceil_div(steps, most)) * kTileColumns;
}

inline void store_sums(const LinearArgs& args, int64_t index, const std::byte* panel,
                       int64_t row_begin, int64_t rows, const int32_t* sums) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const __m512 scale[2] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + 16)};
  store_rows(args, index, row_begin, rows, [&](int64_t i, int64_t v) {
    const __m512 x_scale = _mm512_set1_ps(activation_scale(args.q, row_begin + i));
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * kPanelRows + v));
    return _mm512_mul_ps(sum, _mm512_mul_ps(scale[v / 16], x_scale));
  });
}

// How a panel's codes lie: int8 lines, or two-level int4 ones, of which each block is unpacked
// first.
enum class Codes { kInt8, kTwoLevel };

// One pass: rows [row_begin, row_begin + rows) of the activations × the share's panels.
template <Codes kind>
struct Pass {
  const LinearArgs& args;
  const ActivationTiles& a;
  int64_t row_begin, rows, panel_begin, panel_end;
  int32_t* sums;     // [panels of a chunk][rows, rounded up][32]
  std::byte* codes;  // kTwoLevel: kBlockBytes

  int64_t groups() const { return ceil_div(args.weight->k, args.weight->group_size); }
  int64_t stride() const {
    return kind == Codes::kInt8 ? panel_bytes(WeightFormat::kInt8Channel, args.weight->k, 0)
                                : two_level_panel_bytes(args.weight->k, args.weight->group_size);
  }
  const std::byte* panel(int64_t index) const {
    return args.weight->data.as<std::byte>() + index * stride();
  }

  void run_chunk(int64_t first, int64_t last) const {
    const int64_t k = args.weight->k, block = block_columns(k);
    for (int64_t column = 0; column < k; column += block)
      for (int64_t index = first; index < last; ++index) {
        const int64_t columns = std::min(block, k - column);
        // The next block in this order, or nearly: past the chunk its successor's first.
        const std::byte* next = index + 1 < last     ? panel(index + 1) + line_offset(column)
                                : column + block < k ? panel(first) + line_offset(column + block)
                                : last < panel_end   ? panel(last)
                                                     : nullptr;
        run_block(index, column, columns, next,
                  sums + (index - first) * round_up(rows, kBlockRows) * kPanelRows);
      }
  }

  int64_t line_offset(int64_t column) const {
    return kind == Codes::kInt8
               ? kChannelHeaderBytes + column / kTileColumns * kStepBytes
               : kChannelHeaderBytes + 2 * zeros_bytes(groups()) + column / 8 * kLineBytes;
  }

  void run_block(int64_t index, int64_t column, int64_t columns, const std::byte* next,
                 int32_t* c) const {
    const int64_t k = args.weight->k;
    const std::byte* lines = panel(index) + line_offset(column);
    int64_t steps = columns / kTileColumns, tail = columns % kTileColumns;
    alignas(64) std::byte tail_lines[kStepBytes];
    if constexpr (kind == Codes::kTwoLevel) {
      // What lies behind the last line meets activations of zero.
      unpack_two_level(TwoLevelPanel(panel(index), groups()), args.weight->group_size, column / 8,
                       ceil_div(column + columns, 8), codes);
      lines = codes;
      steps = ceil_div(columns, kTileColumns);
      tail = 0;
    }
    if (tail > 0) {
      const int64_t bytes = lines_of(WeightFormat::kInt8Channel, tail) * kLineBytes;
      std::memcpy(tail_lines, lines + steps * kStepBytes, bytes);
      std::memset(tail_lines + bytes, 0, kStepBytes - bytes);
    }
    const int64_t blocks = ceil_div(rows, kBlockRows);
    constexpr int64_t kLinesAhead = kStepBytes / 64 / (kind == Codes::kInt8 ? 1 : 2);
    BlockPrefetch prefetch{next, next == nullptr ? 0 : ceil_div(kLinesAhead, blocks)};
    const auto between = [&](int64_t) { prefetch.step(); };
    const Sums start = column == 0 ? Sums::kStart : Sums::kContinue;
    // Sums that no later block continues take turns in L1.
    const bool single = columns == k;
    for (int64_t m = 0; m < rows; m += kBlockRows) {
      const int64_t some = std::min(rows - m, kBlockRows);
      int32_t* at = c + (single ? m / kBlockRows % 2 * kBlockRows : m) * kPanelRows;
      if (steps > 0)
        multiply_tiles(a, m, some, column, lines, steps, kTileColumns, start, at, between);
      if (tail > 0)
        multiply_tiles(a, m, some, column + steps * kTileColumns, tail_lines, 1, kTileColumns,
                       steps > 0 ? Sums::kContinue : start, at, between);
      if (column + columns == k) store_sums(args, index, panel(index), row_begin + m, some, at);
    }
  }
};

// `few` takes the products of few rows.
template <Codes kind, const LinearKernel& few>
int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  const Passes pass = passes(weight, m);
  const int64_t own = sums_bytes(pass) + (kind == Codes::kTwoLevel ? kBlockBytes : 0) +
                      ActivationTiles::scratch_bytes(pass.rows, weight.k);
  return std::max(own, few.scratch_bytes(weight, m));
}

template <Codes kind, const LinearKernel& few>
void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastRows) return few.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const Passes pass = passes(weight, args.m);
  std::byte* sums = worker_scratch(args, scratch_bytes<kind, few>(weight, args.m), worker);
  std::byte* codes = sums + sums_bytes(pass);
  auto* copies = reinterpret_cast<int8_t*>(codes + (kind == Codes::kTwoLevel ? kBlockBytes : 0));
  const Tiles tiles(kTileColumns);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += pass.rows) {
    const int64_t rows = std::min(share.row_end - begin, pass.rows);
    const ActivationTiles a(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k,
                            kTileColumns, copies);
    const Pass<kind> part{
        args, a, begin, rows, share.panel_begin, share.panel_end, reinterpret_cast<int32_t*>(sums),
        codes};
    for (int64_t first = share.panel_begin; first < share.panel_end; first += pass.panels)
      part.run_chunk(first, std::min(share.panel_end, first + pass.panels));
  }
}

}  // namespace
}  // namespace whit::cpu
