// AVX2 linears of int4_group weights and f32 activations, which become int16 (int16.h):
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
//
// A word's eight codes are four pairs of int16 with six operations: bits 0–3, 8–11, 4–7 and 12–15
// of its halves are columns (0, 2), (1, 3), (4, 6) and (5, 7).
//
// M ≤ 4: codes are unpacked in registers. M > 4: a group's codes are unpacked to scratch, then used
// by tiles of 6 × 16 outputs. Bound: two vpmaddwd a clock, 64 operations a clock and core.
#include "kernels/cpu/avx2/int16.h"
#include "kernels/cpu/avx2/int4.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;
constexpr int64_t kMostInlineRows = 4;
constexpr int kPairs = 4;  // a word's

// |Σ code · q| of a group stays below 2³¹.
static_assert(int64_t{15} * static_cast<int64_t>(kLargestInt16) * kMostGroupColumns < INT32_MAX);

inline __attribute__((always_inline)) void unpack(__m256i words, __m256i (&pairs)[kPairs]) {
  const __m256i nibble = _mm256_set1_epi16(15);
  pairs[0] = _mm256_and_si256(words, nibble);
  pairs[1] = _mm256_and_si256(_mm256_srli_epi16(words, 8), nibble);
  pairs[2] = _mm256_and_si256(_mm256_srli_epi16(words, 4), nibble);
  pairs[3] = _mm256_srli_epi16(words, 12);
}

struct GroupArgs {
  const std::byte* lines;
  int64_t count;  // of lines
  const Group* group;
  const int32_t* x;
  int64_t x_stride;
  const int32_t* group_sums;
  int64_t group_sums_stride;
  float* sums;  // [rows][32]
};

template <int MR, int kVectors>
void multiply_packed(const GroupArgs& args, int first) {
  __m256i acc[MR][kVectors];
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = _mm256_setzero_si256();
  });
  const std::byte* line = args.lines + 32 * first;
  const int32_t* x = args.x;
  for (int64_t i = 0; i < args.count; ++i, line += kLineBytes, x += kPairs) {
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T0);
    if constexpr (kVectors > 2)
      _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64, _MM_HINT_T0);
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      __m256i pairs[kPairs];
      unpack(load(line + 32 * v), pairs);
      repeat<MR>([&](auto m) __attribute__((always_inline)) {
        repeat<kPairs>([&](auto p) __attribute__((always_inline)) {
          add_products(acc[m][v], pairs[p], broadcast(x + m * args.x_stride + p));
        });
      });
    });
  }
  add_group<MR, kVectors>(acc, *args.group, first, args.group_sums, args.group_sums_stride,
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

// Lines → int16 pairs [2 halves of the panel][kPairs · count][16].
void unpack_lines(const std::byte* lines, int64_t count, int32_t* block) {
  const int64_t half = count * kPairs * kTileColumns;
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, block += kPairs * kTileColumns)
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 32 * v, _MM_HINT_T0);
      __m256i pairs[kPairs];
      unpack(load(lines + 32 * v), pairs);
      int32_t* to = block + v / kTileVectors * half + v % kTileVectors * kLanes;
      repeat<kPairs>([&](auto p) __attribute__((always_inline)) {
        store(to + p * kTileColumns, pairs[p]);
      });
    });
}

template <int MR>
void multiply_unpacked(const GroupArgs& args, const int32_t* block, int first) {
  __m256i acc[MR][kTileVectors];
  repeat<MR * kTileVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kTileVectors][i % kTileVectors] = _mm256_setzero_si256();
  });
  add_pairs<MR>(block, kPairs * args.count, args.x, args.x_stride, acc);
  add_group<MR, kTileVectors>(acc, *args.group, first, args.group_sums, args.group_sums_stride,
                              args.sums);
}

using TileFunction = void (*)(const GroupArgs&, const int32_t*, int);
constexpr TileFunction kTileFunctions[kPairTileRows] = {multiply_unpacked<1>, multiply_unpacked<2>,
                                                        multiply_unpacked<3>, multiply_unpacked<4>,
                                                        multiply_unpacked<5>, multiply_unpacked<6>};

void multiply_many_rows(GroupArgs args, int64_t rows, int32_t* block) {
  unpack_lines(args.lines, args.count, block);
  const GroupArgs whole = args;
  const int64_t tile = even_tile(rows, kPairTileRows);
  for (int first = 0; first < kPanelVectors; first += kTileVectors) {
    for (int64_t m = 0; m < rows; m += tile) {
      args.x = whole.x + m * whole.x_stride;
      args.group_sums = whole.group_sums + m * whole.group_sums_stride;
      args.sums = whole.sums + m * kPanelRows;
      const int64_t tile_rows = rows - m < tile ? rows - m : tile;
      kTileFunctions[tile_rows - 1](args, block, first);
    }
    block += whole.count * kPairs * kTileColumns;
  }
}

// Sums of q over the groups of a row.
void sum_groups(const int32_t* x, int64_t k, int64_t group_size, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t begin = 0; begin < k; begin += group_size) {
    const int64_t columns = k - begin < group_size ? k - begin : group_size;
    __m256i sum = _mm256_setzero_si256();
    for (int64_t i = 0; i < pair_words(columns); i += kLanes)
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(load(x + begin / 2 + i), ones));
    int32_t lanes[kLanes], total = 0;
    store(lanes, sum);
    for (const int32_t lane : lanes) total += lane;
    *sums++ = total;
  }
}

// A worker's scratch.
struct Scratch {
  int64_t rows, x_stride, groups, block_words;

  Scratch(const PackedWeight& weight, int64_t m)
      : rows(pair_block_rows(weight.k, m)),
        x_stride(pair_words(weight.k)),
        groups(ceil_div(weight.k, weight.group_size)),
        block_words(lines_of(kFormat, weight.group_size < weight.k ? weight.group_size : weight.k) *
                    kPairs * kPanelRows) {}
  int64_t bytes() const {
    return 4 * (block_words + rows * (kPanelRows + x_stride) + round_up(rows * (groups + 1), 16));
  }
};

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) { return Scratch(weight, m).bytes(); }

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kPairTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const Scratch sizes(weight, args.m);
  auto* block = reinterpret_cast<int32_t*>(worker_scratch(args, sizes.bytes(), worker));
  auto* sums = reinterpret_cast<float*>(block + sizes.block_words);
  int32_t* x = block + sizes.block_words + sizes.rows * kPanelRows;
  int32_t* group_sums = x + sizes.rows * sizes.x_stride;
  auto* x_scales = reinterpret_cast<float*>(group_sums + sizes.rows * sizes.groups);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = share.row_end - begin < sizes.rows ? share.row_end - begin : sizes.rows;
    for (int64_t m = 0; m < rows; ++m) {
      int32_t* to = x + m * sizes.x_stride;
      x_scales[m] = quantize_row(args.x + (begin + m) * args.x_stride, weight.k, to);
      sum_groups(to, weight.k, weight.group_size, group_sums + m * sizes.groups);
    }
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      std::memset(sums, 0, 4 * kPanelRows * rows);
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      prefetch_ahead(panel, zeros_bytes(sizes.groups));
      const auto* zeros = reinterpret_cast<const uint8_t*>(panel);
      panel += zeros_bytes(sizes.groups);
      for (int64_t g = 0; g < sizes.groups; ++g, zeros += kPanelRows) {
        const int64_t left = weight.k - g * weight.group_size;
        const int64_t lines =
            lines_of(kFormat, left < weight.group_size ? left : weight.group_size);
        Group group;
        load_group(panel + lines * kLineBytes, zeros, group);
        const GroupArgs group_args{.lines = panel,
                                   .count = lines,
                                   .group = &group,
                                   .x = x + g * weight.group_size / 2,
                                   .x_stride = sizes.x_stride,
                                   .group_sums = group_sums + g,
                                   .group_sums_stride = sizes.groups,
                                   .sums = sums};
        if (rows <= kMostInlineRows)
          multiply_few_rows(group_args, rows);
        else
          multiply_many_rows(group_args, rows, block);
        prefetch_ahead(panel + lines * kLineBytes, kGroupScaleBytes);
        panel += lines * kLineBytes + kGroupScaleBytes;
      }
      scale_rows(
          rows, [&](int64_t m) { return x_scales[m]; }, sums);
      store_tile(args, index, begin, rows, sums);
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx2LinearW4A16 = {.name = "avx2/linear_w4a16",
                                                 .format = kFormat,
                                                 .activation = Activation::kFloat,
                                                 .isa = Isa::kAvx2,
                                                 .packed_bytes = packed_bytes<kFormat>,
                                                 .pack = pack_panels<kFormat>,
                                                 .scratch_bytes = scratch_bytes,
                                                 .run = run,
                                                 .activation_error = 0.5f / kLargestInt16};

}  // namespace whit::cpu
