// Passes of AMX's linears whose sums of int8 products are exact to the end:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
// Panels begin with their rows' scales.
//
// Sums stay in their tiles along K, up to 4096 columns: a panel's block, 128 KB, and the
// activations of a pass, 1 MB, stay in L2, from where both are prefetched to L1. The next block
// is prefetched to L2 meanwhile. A block's sums become rows of y while the next
// is multiplied.
#pragma once

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/two_level.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr int64_t kMostBlockColumns = 4096;
constexpr int64_t kStepBytes = kTileColumns / 4 * kLineBytes;
constexpr int64_t kBlockBytes = kMostBlockColumns / kTileColumns * kStepBytes;

// How a product is cut: passes of `rows` rows; within a pass chunks of `panels` panels, whose sums
// [panels][rows][32], where there are several blocks along K, stay in L2 with a block of the
// activations; within a chunk blocks of columns.
struct Passes {
  int64_t rows, panels;
};
inline Passes passes(const PackedWeight& weight, int64_t m) {
  constexpr int64_t kPassBytes = 1 << 20, kMostRows = 1024, kChunkBytes = 256 << 10;
  const int64_t columns = std::min(weight.k, kMostBlockColumns);
  const int64_t rows = std::min(
      m, std::clamp(kPassBytes / columns / kBlockRows * kBlockRows, kBlockRows, kMostRows));
  const int64_t sums = round_up(rows, kBlockRows) * kLineBytes;
  return {rows, weight.k <= kMostBlockColumns
                    ? 1
                    : std::clamp<int64_t>(kChunkBytes / sums, 1, ceil_div(weight.n, kPanelRows))};
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
  const RowScales x_scales(args.q, row_begin);
  store_rows(args, index, row_begin, rows, [&](int64_t i, int64_t v) {
    const __m512 x_scale = _mm512_set1_ps(x_scales.at[i * x_scales.step]);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * kPanelRows + v));
    return _mm512_mul_ps(sum, _mm512_mul_ps(scale[v / 16], x_scale));
  });
}

// How a panel's codes lie: int8 lines, or two-level int4 ones, of which each block is unpacked
// first.
enum class Codes { kInt8, kTwoLevel };

// One pass: rows [row_begin, row_begin + rows) of the activations × the share's panels.
template <Codes kind>
class Pass {
 public:
  // sums: [panels of a chunk][rows, rounded up][32]; codes: kBlockBytes where kTwoLevel.
  Pass(const LinearArgs& args, const ActivationTiles& a, int64_t row_begin, int64_t rows,
       int64_t panel_end, int32_t* sums, std::byte* codes)
      : args_(args),
        weight_(*args.weight),
        a_(a),
        row_begin_(row_begin),
        rows_(rows),
        panel_end_(panel_end),
        sums_(sums),
        codes_(codes) {}

  void run_chunk(int64_t first, int64_t last) {
    const int64_t k = weight_.k, block = block_columns(k);
    for (int64_t column = 0; column < k; column += block)
      for (int64_t index = first; index < last; ++index) {
        const int64_t columns = std::min(block, k - column);
        // The next block in this order, or nearly: past the chunk its successor's first.
        const std::byte* next = index + 1 < last     ? panel(index + 1) + line_offset(column)
                                : column + block < k ? panel(first) + line_offset(column + block)
                                : last < panel_end_  ? panel(last)
                                                     : nullptr;
        run_block(index, column, columns, next,
                  sums_ + (index - first) * round_up(rows_, kBlockRows) * kPanelRows);
      }
  }

  // What is left to be stored.
  void finish() { store_some(kBlockRows); }

 private:
  // A block of sums that become rows of y while the next ones are made.
  struct Finished {
    const int32_t* sums;
    int64_t panel, row, rows;  // the next row, and how many are left
  };

  int64_t groups() const { return ceil_div(weight_.k, weight_.group_size); }
  const std::byte* panel(int64_t index) const {
    return weight_.data.as<std::byte>() +
           index * (kind == Codes::kInt8 ? panel_bytes(WeightFormat::kInt8Channel, weight_.k, 0)
                                         : two_level_panel_bytes(weight_.k, weight_.group_size));
  }
  int64_t line_offset(int64_t column) const {
    return kind == Codes::kInt8
               ? kChannelHeaderBytes + column / kTileColumns * kStepBytes
               : kChannelHeaderBytes + 2 * zeros_bytes(groups()) + column / 8 * kLineBytes;
  }

  void store_some(int64_t most) {
    const int64_t some = std::min(most, finished_.rows);
    if (some == 0) return;
    store_sums(args_, finished_.panel, panel(finished_.panel), finished_.row, some, finished_.sums);
    finished_.sums += some * kPanelRows;
    finished_.row += some;
    finished_.rows -= some;
  }

  // c: the panel's sums, [rows][32], where other blocks of columns come before or after.
  void run_block(int64_t index, int64_t column, int64_t columns, const std::byte* next,
                 int32_t* c) {
    const std::byte* lines = panel(index) + line_offset(column);
    int64_t steps = columns / kTileColumns, tail = columns % kTileColumns;
    alignas(64) std::byte tail_lines[kStepBytes];
    if constexpr (kind == Codes::kTwoLevel) {
      // What lies behind the last line meets activations of zero.
      unpack_two_level(TwoLevelPanel(panel(index), groups()), weight_.group_size, column / 8,
                       ceil_div(column + columns, 8), codes_);
      lines = codes_;
      steps = ceil_div(columns, kTileColumns);
      tail = 0;
    }
    if (tail > 0) {
      const int64_t bytes = lines_of(WeightFormat::kInt8Channel, tail) * kLineBytes;
      std::memcpy(tail_lines, lines + steps * kStepBytes, bytes);
      std::memset(tail_lines + bytes, 0, kStepBytes - bytes);
    }
    const bool last = column + columns == weight_.k;
    const int64_t blocks = ceil_div(rows_, kBlockRows);
    constexpr int64_t kLinesAhead = kStepBytes / 64 / (kind == Codes::kInt8 ? 1 : 2);
    BlockPrefetch prefetch{next, next == nullptr ? 0 : ceil_div(kLinesAhead, blocks)};
    const int64_t rows_a_step = ceil_div(kBlockRows, std::max<int64_t>(1, steps));
    for (int64_t m = 0; m < rows_; m += kBlockRows) {
      const int64_t some = std::min(rows_ - m, kBlockRows);
      const auto between = [&](int64_t step) {
        prefetch.step();
        store_some(rows_a_step);
        if (last)
          prefetch_residual(args_, index, row_begin_ + std::min(m + step * rows_a_step, m + some),
                            row_begin_ + std::min(m + (step + 1) * rows_a_step, m + some));
      };
      const Operands now = operands(a_, m, some, column, lines);
      const bool more = m + kBlockRows < rows_;
      const Operands after =
          operands(a_, more ? m + kBlockRows : 0,
                   more ? std::min(rows_ - m - kBlockRows, kBlockRows) : rows_, column,
                   more || kind == Codes::kTwoLevel || next == nullptr ? lines : next);
      const int32_t* from = column == 0 ? nullptr : c + m * kPanelRows;
      int32_t* to = last ? turns_[turn_] : c + m * kPanelRows;
      if (steps > 0) {
        multiply_tiles<Ahead::kL1>(now, after, steps, kTileColumns, from, to, between);
        from = to;
      }
      if (tail > 0) {
        const Operands end = operands(a_, m, some, column + steps * kTileColumns, tail_lines);
        multiply_tiles<Ahead::kNone>(end, end, 1, kTileColumns, from, to, between);
      }
      if (last) {
        store_some(kBlockRows);
        finished_ = {to, index, row_begin_ + m, some};
        turn_ ^= 1;
      }
    }
  }

  const LinearArgs& args_;
  const PackedWeight& weight_;
  const ActivationTiles& a_;
  int64_t row_begin_, rows_, panel_end_;
  int32_t* sums_;
  std::byte* codes_;
  Finished finished_ = {};
  int turn_ = 0;
  alignas(64) int32_t turns_[2][kBlockRows * kPanelRows];
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
  Passes pass = passes(weight, args.m);
  const LinearShare share = linear_share(args, kBlockRows, worker, pass.rows);
  if (share.panel_begin == share.panel_end) return;
  std::byte* sums = worker_scratch(args, scratch_bytes<kind, few>(weight, args.m), worker);
  std::byte* codes = sums + sums_bytes(pass);
  auto* copies = reinterpret_cast<int8_t*>(codes + (kind == Codes::kTwoLevel ? kBlockBytes : 0));
  pass.rows = even_pass(share.row_end - share.row_begin, pass.rows);
  const Tiles tiles(kTileColumns);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += pass.rows) {
    const int64_t rows = std::min(share.row_end - begin, pass.rows);
    const ActivationTiles a(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k,
                            kTileColumns, copies);
    Pass<kind> part(args, a, begin, rows, share.panel_end, reinterpret_cast<int32_t*>(sums), codes);
    for (int64_t first = share.panel_begin; first < share.panel_end; first += pass.panels)
      part.run_chunk(first, std::min(share.panel_end, first + pass.panels));
    part.finish();
  }
}

}  // namespace
}  // namespace whit::cpu
