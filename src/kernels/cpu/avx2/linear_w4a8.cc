// AVX2 linears of int4_group weights and int8 activations:
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
//
// The products are those of unsigned_codes.h; a group's sums are widened to int32.
//
// M ≤ 4: codes are unpacked in registers. M > 4: a group's codes are unpacked to scratch, one byte
// each, then used by tiles of 4 × 16 outputs. Bound: two of vpmaddubsw and vpmaddwd a clock, 9 of
// them for 8 · 64 operations: 113 a clock and core; all vector operations, at four a clock, allow
// 120.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/avx2/int4.h"
#include "kernels/cpu/avx2/unsigned_codes.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;

struct GroupArgs {
  const std::byte* codes;
  int64_t lines;
  const Group* group;
  const int8_t* q;
  int64_t q_stride;
  const int32_t* group_sums;
  int64_t group_sums_stride;
  float* sums;  // [rows][32]
};

template <int MR, int kVectors>
void multiply_packed(const GroupArgs& args, int first) {
  __m256i acc[MR][kVectors];
  const __m256i once[1] = {_mm256_set1_epi16(1)};
  clear(acc);
  add_packed_lines(args.codes + 32 * first, args.lines, args.q, args.q_stride, once, acc);
  add_group<MR, kVectors>(acc, *args.group, first, args.group_sums, args.group_sums_stride,
                          args.sums);
}

template <int MR>
void multiply_unpacked(const GroupArgs& args, int first) {
  __m256i acc[MR][kTileVectors];
  const __m256i once[1] = {_mm256_set1_epi16(1)};
  clear(acc);
  add_unpacked_lines(args.codes + first / kTileVectors * args.lines * (2 * kHalfLineBytes),
                     args.lines, args.q, args.q_stride, once, acc);
  add_group<MR, kTileVectors>(acc, *args.group, first, args.group_sums, args.group_sums_stride,
                              args.sums);
}

void multiply_few_rows(const GroupArgs& args, int64_t rows) {
  switch (rows) {
    case 1:
      return multiply_packed<1, 4>(args, 0);
    case 2:
      return multiply_packed<2, 4>(args, 0);
    case 3:
      multiply_packed<3, 2>(args, 0);
      return multiply_packed<3, 2>(args, 2);
    default:
      multiply_packed<4, 2>(args, 0);
      return multiply_packed<4, 2>(args, 2);
  }
}

using TileFunction = void (*)(const GroupArgs&, int);
constexpr TileFunction kTileFunctions[kTileRows] = {multiply_unpacked<1>, multiply_unpacked<2>,
                                                    multiply_unpacked<3>, multiply_unpacked<4>};

void multiply_many_rows(GroupArgs args, int64_t rows, std::byte* codes) {
  unpack_lines(args.codes, args.lines, codes);
  args.codes = codes;
  const GroupArgs whole = args;
  const int64_t tile = even_tile(rows, kTileRows);
  for (int first = 0; first < kPanelVectors; first += kTileVectors)
    for (int64_t m = 0; m < rows; m += tile) {
      args.q = whole.q + m * whole.q_stride;
      args.group_sums = whole.group_sums + m * whole.group_sums_stride;
      args.sums = whole.sums + m * kPanelRows;
      const int64_t tile_rows = rows - m < tile ? rows - m : tile;
      kTileFunctions[tile_rows - 1](args, first);
    }
}

// Unpacked codes of one group.
int64_t unpacked_bytes(const PackedWeight& weight) {
  const int64_t columns = weight.group_size < weight.k ? weight.group_size : weight.k;
  return lines_of(kFormat, columns) * 8 * kPanelRows;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return unpacked_bytes(weight) + 4 * kPanelRows * block_rows(weight.k, m);
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t most_rows = block_rows(weight.k, args.m);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<float*>(codes + unpacked_bytes(weight));
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      std::memset(sums, 0, 4 * kPanelRows * rows);
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      prefetch_ahead(panel, zeros_bytes(groups));
      const auto* zeros = reinterpret_cast<const uint8_t*>(panel);
      panel += zeros_bytes(groups);
      for (int64_t g = 0; g < groups; ++g, zeros += kPanelRows) {
        const int64_t left = weight.k - g * weight.group_size;
        const int64_t lines =
            lines_of(kFormat, left < weight.group_size ? left : weight.group_size);
        Group group;
        load_group(panel + lines * kLineBytes, zeros, group);
        const GroupArgs group_args{.codes = panel,
                                   .lines = lines,
                                   .group = &group,
                                   .q = args.q.q + begin * args.q.stride + g * weight.group_size,
                                   .q_stride = args.q.stride,
                                   .group_sums = args.q.group_sums + begin * groups + g,
                                   .group_sums_stride = groups,
                                   .sums = sums};
        if (rows <= kMostInlineRows)
          multiply_few_rows(group_args, rows);
        else
          multiply_many_rows(group_args, rows, codes);
        prefetch_ahead(panel + lines * kLineBytes, kGroupScaleBytes);
        panel += lines * kLineBytes + kGroupScaleBytes;
      }
      scale_rows(
          rows, [&](int64_t m) { return activation_scale(args.q, begin + m); }, sums);
      store_tile(args, index, begin, rows, sums);
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx2LinearW4A8 = {.name = "avx2/linear_w4a8",
                                                .format = kFormat,
                                                .activation = Activation::kInt8,
                                                .isa = Isa::kAvx2,
                                                .packed_bytes = packed_bytes<kFormat>,
                                                .pack = pack_panels<kFormat>,
                                                .scratch_bytes = scratch_bytes,
                                                .run = run};

}  // namespace whit::cpu
