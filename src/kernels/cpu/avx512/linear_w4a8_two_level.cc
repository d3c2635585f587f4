// AVX-512 VNNI linears of int4_group weights of two-level scales and int8 activations:
//   y[m, n] = float(Σ_k (code − zero) · multiple · q) · (step[n] · x_scale[m]) (+ bias) (+
//   residual)
//
// M ≤ 16: the products of int4_lines.h, a group's sums times its multiple, less its zero points'
// share. More: blocks of 512 columns of a panel become int8 codes in L1, which the tiles of
// int8_tile.h multiply. Sums are exact: both are the same number.
#include "kernels/cpu/avx512/int4_lines.h"
#include "kernels/cpu/avx512/int8_tile.h"
#include "kernels/cpu/avx512/two_level.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr int64_t kUnpackedBytes = kBlockLines * kLineBytes;

// One group of a panel and the rows of activations it meets.
struct GroupArgs {
  const std::byte* lines;
  int64_t count;
  const uint8_t *multiples, *shares;  // [32]
  const int8_t* q;
  int64_t q_stride;
  const int32_t* group_sums;
  int64_t group_sums_stride;
  int32_t* sums;  // [rows][32]
};

// sums [MR][32] += multiple · Σ code · q − share · Σ q.
template <int MR>
void multiply_group(const GroupArgs& args) {
  __m512i multiple[kVectors], share[kVectors];
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    const auto widen = [](const uint8_t* from) {
      return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    };
    multiple[v] = widen(args.multiples + kLanes * v);
    share[v] = widen(args.shares + kLanes * v);
  });
  multiply_int4_lines<MR, Int4Lines::kPacked>(
      args.lines, args.count, args.q,
      args.q_stride, [&](int m, int v, __m512i dot) __attribute__((always_inline)) {
        const __m512i sum = _mm512_set1_epi32(args.group_sums[m * args.group_sums_stride]);
        int32_t* at = args.sums + m * kPanelRows + kLanes * v;
        const __m512i start = _mm512_sub_epi32(load(at), _mm512_mullo_epi32(share[v], sum));
        store(at, _mm512_add_epi32(start, _mm512_mullo_epi32(multiple[v], dot)));
      });
}

using GroupFunction = void (*)(const GroupArgs&);
constexpr GroupFunction kGroupFunctions[kTileRows] = {
    multiply_group<1>, multiply_group<2>, multiply_group<3>, multiply_group<4>,
    multiply_group<5>, multiply_group<6>, multiply_group<7>, multiply_group<8>};

// sums [rows][32] of `rows` ≤ kMostInlineRows rows from row_begin on.
void multiply_few_rows(const LinearArgs& args, const TwoLevelPanel& panel, int64_t row_begin,
                       int64_t rows, int32_t* sums) {
  const PackedWeight& weight = *args.weight;
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  std::memset(sums, 0, 4 * kPanelRows * rows);
  GroupArgs group{.lines = panel.lines,
                  .multiples = panel.multiples,
                  .shares = panel.shares,
                  .q_stride = args.q.stride,
                  .group_sums_stride = groups};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t column = g * weight.group_size, left = weight.k - column;
    group.count =
        lines_of(WeightFormat::kInt4Group, left < weight.group_size ? left : weight.group_size);
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t row = row_begin + m, tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
      group.q = args.q.q + row * args.q.stride + column;
      group.group_sums = args.q.group_sums + row * groups + g;
      group.sums = sums + m * kPanelRows;
      kGroupFunctions[tile_rows - 1](group);
    }
    group.lines += group.count * kLineBytes;
    group.multiples += kPanelRows;
    group.shares += kPanelRows;
  }
}

// The same of any number of rows, offset_rows at x.
void multiply_many_rows(const PackedWeight& weight, const TwoLevelPanel& panel, const uint8_t* x,
                        int64_t rows, std::byte* codes, int32_t* sums) {
  const int64_t lines = lines_of(WeightFormat::kInt4Group, weight.k);
  start_sums(panel.sums, rows, sums);
  for (int64_t line = 0; line < lines; line += kBlockLines / 2) {
    const int64_t end = lines - line < kBlockLines / 2 ? lines : line + kBlockLines / 2;
    unpack_two_level(panel, weight.group_size, line, end, codes);
    multiply_rows(codes, 2 * (end - line), x + 8 * line, offset_row_bytes(weight.k), rows, sums);
  }
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return kUnpackedBytes + block_rows(weight.k, m) * (4 * kPanelRows + offset_row_bytes(weight.k));
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = two_level_panel_bytes(weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t most_rows = block_rows(weight.k, args.m);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<int32_t*>(codes + kUnpackedBytes);
  auto* x = reinterpret_cast<uint8_t*>(sums + most_rows * kPanelRows);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    const bool few = rows <= kMostInlineRows;
    if (!few) offset_rows(args.q, begin, rows, weight.k, x);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* data = weight.data.as<std::byte>() + index * stride;
      const TwoLevelPanel panel(data, groups);
      if (few) {
        prefetch_ahead(data, panel.lines - data);
        multiply_few_rows(args, panel, begin, rows, sums);
      } else {
        multiply_many_rows(weight, panel, x, rows, codes, sums);
      }
      scale_sums(args, panel.steps, begin, rows, sums);
      store_tile(args, index, begin, rows, reinterpret_cast<const float*>(sums));
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW4A8TwoLevel = {.name = "avx512/linear_w4a8_two_level",
                                                          .format = WeightFormat::kInt4Group,
                                                          .activation = Activation::kInt8,
                                                          .isa = Isa::kAvx512,
                                                          .packed_bytes = packed_bytes_two_level,
                                                          .pack = pack_panels_two_level,
                                                          .scratch_bytes = scratch_bytes,
                                                          .run = run,
                                                          .two_level = true};

}  // namespace whit::cpu
