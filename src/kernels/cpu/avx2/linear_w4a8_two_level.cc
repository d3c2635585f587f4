// AVX2 linears of int4_group weights of two-level scales and int8 activations:
//   y[m, n] = float(Σ_g multiple[n, g] · (Σ_k code · q − zero[n, g] · Σ_k q)) · (step[n] ·
//   x_scale[m]) (+ bias) (+ residual)
//
// The products are those of unsigned_codes.h; the vpmaddwd that widens their sums multiplies by the
// group's scale in the same operation, so that sums stay in registers from group to group. They
// start at the zero points' share. Bound: as linear_w4a8's, without what a group's end costs there.
//
// M ≤ 4: codes are unpacked in registers. M > 4: blocks of about 512 columns are unpacked to
// scratch, one byte each, then used by tiles of 4 × 16 outputs.
#include <immintrin.h>

#include "kernels/cpu/avx2/unsigned_codes.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr int64_t kBlockColumns = 512;  // of half a panel, 8 KB: with tiles of activations in L1

// Groups that follow each other and the sums that they add to.
struct BlockArgs {
  const std::byte* codes;  // lines as packed, or unpacked
  int64_t columns, group_size;
  const uint8_t* multiples;  // [groups of the block][32]
  const int8_t* q;
  int64_t q_stride;
  int32_t* sums;  // [rows][32]
};

// Both halves of a row's word hold its multiple.
template <int kVectors>
inline __attribute__((always_inline)) void load_multiples(const uint8_t* from,
                                                          __m256i (&factors)[kVectors]) {
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    const __m256i words =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + kLanes * v)));
    factors[v] = _mm256_or_si256(words, _mm256_slli_epi32(words, 16));
  });
}

enum class Codes { kPacked, kUnpacked };

// kVectors registers of rows from register `first` of the panel on.
template <Codes codes, int MR, int kVectors>
void multiply_block(const BlockArgs& args, int first) {
  __m256i acc[MR][kVectors], factors[kVectors];
  const auto sums = [&](int i) {
    return args.sums + i / kVectors * kPanelRows + kLanes * (first + i % kVectors);
  };
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = load(sums(i));
  });
  const std::byte* line = args.codes;
  if constexpr (codes == Codes::kPacked)
    line += 32 * first;
  else
    line += first / kTileVectors * lines_of(WeightFormat::kInt4Group, args.columns) *
            (2 * kHalfLineBytes);
  const uint8_t* multiples = args.multiples + kLanes * first;
  const int8_t* q = args.q;
  for (int64_t left = args.columns; left > 0; left -= args.group_size) {
    const int64_t lines =
        lines_of(WeightFormat::kInt4Group, left < args.group_size ? left : args.group_size);
    load_multiples(multiples, factors);
    if constexpr (codes == Codes::kPacked) {
      add_packed_lines(line, lines, q, args.q_stride, factors, acc);
      line += lines * kLineBytes;
    } else {
      add_unpacked_lines(line, lines, q, args.q_stride, factors, acc);
      line += lines * (2 * kHalfLineBytes);
    }
    q += args.group_size;
    multiples += kPanelRows;
  }
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums(i), acc[i / kVectors][i % kVectors]);
  });
}

void multiply_few_rows(const BlockArgs& args, int64_t rows) {
  switch (rows) {
    case 1:
      return multiply_block<Codes::kPacked, 1, 4>(args, 0);
    case 2:
      return multiply_block<Codes::kPacked, 2, 4>(args, 0);
    case 3:
      multiply_block<Codes::kPacked, 3, 2>(args, 0);
      return multiply_block<Codes::kPacked, 3, 2>(args, 2);
    default:
      multiply_block<Codes::kPacked, 4, 2>(args, 0);
      return multiply_block<Codes::kPacked, 4, 2>(args, 2);
  }
}

using TileFunction = void (*)(const BlockArgs&, int);
constexpr TileFunction kTileFunctions[kTileRows] = {
    multiply_block<Codes::kUnpacked, 1, kTileVectors>,
    multiply_block<Codes::kUnpacked, 2, kTileVectors>,
    multiply_block<Codes::kUnpacked, 3, kTileVectors>,
    multiply_block<Codes::kUnpacked, 4, kTileVectors>};

// Columns of a block: whole groups.
int64_t block_columns(const PackedWeight& weight) {
  const int64_t group = weight.group_size < weight.k ? weight.group_size : weight.k;
  const int64_t groups = kBlockColumns / group;
  const int64_t columns = group * (groups < 1 ? 1 : groups);
  return columns < weight.k ? columns : weight.k;
}

void multiply_many_rows(const BlockArgs& whole, int64_t block, int64_t rows, std::byte* codes) {
  const int64_t tile = even_tile(rows, kTileRows);
  BlockArgs args = whole;
  args.codes = codes;
  const std::byte* lines = whole.codes;
  for (int64_t column = 0; column < whole.columns; column += block) {
    args.columns = whole.columns - column < block ? whole.columns - column : block;
    const int64_t count = lines_of(WeightFormat::kInt4Group, args.columns);
    unpack_lines(lines, count, codes);
    lines += count * kLineBytes;
    args.multiples = whole.multiples + column / whole.group_size * kPanelRows;
    for (int first = 0; first < kPanelVectors; first += kTileVectors)
      for (int64_t m = 0; m < rows; m += tile) {
        args.q = whole.q + m * whole.q_stride + column;
        args.sums = whole.sums + m * kPanelRows;
        const int64_t tile_rows = rows - m < tile ? rows - m : tile;
        kTileFunctions[tile_rows - 1](args, first);
      }
  }
}

// sums [rows][32] = −Σ_g share · Σ_k q.
void start_sums(const uint8_t* shares, const int32_t* group_sums, int64_t groups, int64_t rows,
                int32_t* sums) {
  for (int64_t m = 0; m < rows; ++m, group_sums += groups, sums += kPanelRows) {
    __m256i acc[1][kPanelVectors];
    clear(acc);
    for (int64_t g = 0; g < groups; ++g) {
      const __m256i sum = _mm256_set1_epi32(group_sums[g]);
      repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
        const __m256i share = _mm256_cvtepu8_epi32(_mm_loadl_epi64(
            reinterpret_cast<const __m128i*>(shares + g * kPanelRows + kLanes * v)));
        acc[0][v] = _mm256_sub_epi32(acc[0][v], _mm256_mullo_epi32(share, sum));
      });
    }
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
      store(sums + kLanes * v, acc[0][v]);
    });
  }
}

// sums → f32 in place, times the scales.
void scale_sums(const LinearArgs& args, const float* steps, int64_t row_begin, int64_t rows,
                int32_t* sums) {
  for (int64_t m = 0; m < rows; ++m, sums += kPanelRows) {
    const __m256 x_scale = _mm256_set1_ps(activation_scale(args.q, row_begin + m));
    for (int v = 0; v < kPanelVectors; ++v) {
      const __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(steps + kLanes * v), x_scale);
      const __m256 sum = _mm256_cvtepi32_ps(load(sums + kLanes * v));
      store(sums + kLanes * v, _mm256_castps_si256(_mm256_mul_ps(sum, scale)));
    }
  }
}

// Unpacked codes of a block.
int64_t unpacked_bytes(const PackedWeight& weight) {
  return lines_of(WeightFormat::kInt4Group, block_columns(weight)) * 8 * kPanelRows;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return unpacked_bytes(weight) + 4 * kPanelRows * block_rows(weight.k, m);
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  const int64_t stride = two_level_panel_bytes(weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t block = block_columns(weight);
  const int64_t most_rows = block_rows(weight.k, args.m);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<int32_t*>(codes + unpacked_bytes(weight));
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* data = weight.data.as<std::byte>() + index * stride;
      const TwoLevelPanel panel(data, groups);
      prefetch_ahead(data, panel.lines - data);
      start_sums(panel.shares, args.q.group_sums + begin * groups, groups, rows, sums);
      const BlockArgs whole{.codes = panel.lines,
                            .columns = weight.k,
                            .group_size = weight.group_size,
                            .multiples = panel.multiples,
                            .q = args.q.q + begin * args.q.stride,
                            .q_stride = args.q.stride,
                            .sums = sums};
      if (rows <= kMostInlineRows)
        multiply_few_rows(whole, rows);
      else
        multiply_many_rows(whole, block, rows, codes);
      scale_sums(args, panel.steps, begin, rows, sums);
      store_tile(args, index, begin, rows, reinterpret_cast<const float*>(sums));
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx2LinearW4A8TwoLevel = {.name = "avx2/linear_w4a8_two_level",
                                                        .format = WeightFormat::kInt4Group,
                                                        .activation = Activation::kInt8,
                                                        .isa = Isa::kAvx2,
                                                        .packed_bytes = packed_bytes_two_level,
                                                        .pack = pack_panels_two_level,
                                                        .scratch_bytes = scratch_bytes,
                                                        .run = run,
                                                        .two_level = true};

}  // namespace whit::cpu
