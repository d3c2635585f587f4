// The packed weight layouts, shared by the linear kernels of every ISA, and what those kernels have
// in common.
//
// A panel is 32 rows of w [N, K]; N and K are padded with zero codes and zero scales. Along K a
// panel is a sequence of lines of 32 words of 32 bits, one word a row, so a vector's lanes are
// output rows and no sum is ever horizontal:
//   f32           word = w[r][k]                       line = 1 K
//   bf16          word = w[r][2i], w[r][2i+1]          line = 2 K
//   int8_channel, fp8_channel   word = 4 codes         line = 4 K
//   int4_group    word = 8 codes, byte j = w[r][8i+j] | w[r][8i+4+j] << 4, so that `and` and
//   `shift, and` give two
//                 operands of 4 consecutive K each     line = 8 K
// A panel is one contiguous stream, everything it needs inside:
//   int8_channel  f32 scales [32], i32 sums of codes [32], lines
//   fp8_channel   f32 scales [32], zeros [32], lines
//   int4_group    u8 zeros [G, 32] padded to 64 bytes, then for each group: lines, f16 scales [32]
//   of two-level scales
//                 f32 steps [32], i32 sums of (code − zero) · multiple [32] over whole lines, u8
//                 multiples [G, 32] and u8 multiple · zero [G, 32], each padded to 64 bytes, lines
// Every piece is a multiple of 64 bytes. A worker reads whole panels; 32 rows is small enough to
// balance N = 576 over two threads and large enough for four AVX2 accumulators.
#pragma once

#include "kernels/cpu/table.h"

namespace whit::cpu {

inline constexpr int64_t kPanelRows = 32;
inline constexpr int64_t kLineBytes = 4 * kPanelRows;
inline constexpr int64_t kGroupScaleBytes = 2 * kPanelRows;
inline constexpr int64_t kChannelHeaderBytes = 8 * kPanelRows;
inline constexpr int64_t kPrefetchBytes = 8192;  // ahead of what is read

// Codes of 8 bits with a scale a row.
constexpr bool scaled_rows(WeightFormat format) {
  return format == WeightFormat::kInt8Channel || format == WeightFormat::kFp8Channel;
}
// Columns that a word holds.
constexpr int64_t columns_per_word(WeightFormat format) {
  return format == WeightFormat::kInt4Group ? 8
         : scaled_rows(format)              ? 4
         : format == WeightFormat::kBF16    ? 2
                                            : 1;
}
constexpr int64_t lines_of(WeightFormat format, int64_t k) {
  return (k + columns_per_word(format) - 1) / columns_per_word(format);
}
constexpr int64_t zeros_bytes(int64_t groups) { return (groups * kPanelRows + 63) / 64 * 64; }

int64_t panel_bytes(WeightFormat format, int64_t k, int64_t group_size);

// LinearKernel::packed_bytes and LinearKernel::pack of every row.
template <WeightFormat format>
int64_t packed_bytes(int64_t n, int64_t k, int64_t group_size);
template <WeightFormat format>
void pack_panels(std::span<const WeightView> parts, PackedWeight& packed, const Worker& worker);

// The same of two-level scales.
struct TwoLevelPanel {
  TwoLevelPanel(const std::byte* panel, int64_t groups)
      : steps(reinterpret_cast<const float*>(panel)),
        sums(reinterpret_cast<const int32_t*>(panel + 4 * kPanelRows)),
        multiples(reinterpret_cast<const uint8_t*>(panel + kChannelHeaderBytes)),
        shares(multiples + zeros_bytes(groups)),
        lines(panel + kChannelHeaderBytes + 2 * zeros_bytes(groups)) {}
  const float* steps;
  const int32_t* sums;
  const uint8_t *multiples, *shares;
  const std::byte* lines;
};
int64_t two_level_panel_bytes(int64_t k, int64_t group_size);
int64_t packed_bytes_two_level(int64_t n, int64_t k, int64_t group_size);
void pack_panels_two_level(std::span<const WeightView> parts, PackedWeight& packed,
                           const Worker& worker);

// Products prefetch a stream at a fixed distance from the line that they read. What they read of it
// beside lines, headers and scales, must be counted in, or as much is left out at that distance.
inline void prefetch_ahead(const std::byte* at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + kPrefetchBytes + i);
}

// Bytes from row to row of int8 activations. Rows that are a multiple of 1 KB apart would lie in
// the same few sets of a cache, and AMX's kernels would copy them first.
inline int64_t int8_row_stride(int64_t k) {
  const int64_t whole = round_up(k, 64);
  return whole % 1024 == 0 ? whole + 64 : whole;
}

// One worker's part of a product: panels × rows of x. Panels are split first; where there are too
// few of them to keep all workers equally busy, M is split as well, in multiples of `row_unit`.
// Kernels that read all panels of their share anew for every `pass_rows` rows say so: M is split
// too where that leaves a worker less to read.
struct LinearShare {
  int64_t panel_begin, panel_end;
  int64_t row_begin, row_end;
};
LinearShare linear_share(const LinearArgs& args, int64_t row_unit, const Worker& worker,
                         int64_t pass_rows = 0);

// This worker's scratch, `bytes` being what the kernel's scratch_bytes returned.
inline std::byte* worker_scratch(const LinearArgs& args, int64_t bytes, const Worker& worker) {
  return args.scratch + bytes * worker.index;
}

// Rows of a tile where `rows` are cut into as few tiles of at most `most` as can be: of about the
// same size, as small tiles are the slowest a row.
inline int64_t even_tile(int64_t rows, int64_t most) {
  return ceil_div(rows, ceil_div(rows, most));
}

// y[row_begin + i, 32·panel + r] = (tile[i, r] + bias) + residual for `rows` rows i and the panel's
// r < N.
void store_tile(const LinearArgs& args, int64_t panel, int64_t row_begin, int64_t rows,
                const float* tile);

inline float activation_scale(const Int8Rows& q, int64_t row) {
  return q.static_scale > 0 ? q.static_scale : q.scale[row];
}

}  // namespace whit::cpu
