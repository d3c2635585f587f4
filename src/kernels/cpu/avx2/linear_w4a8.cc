// AVX2 linears of int4_group weights and int8 activations:
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
//
// vpmaddubsw multiplies unsigned codes by signed activations. A result is at most 2 · 15 · 128 =
// 3840 in magnitude, so eight of them, four lines of a panel, are added in int16 before vpmaddwd
// widens their sum to int32.
//
// M ≤ 4: codes are unpacked in registers. M > 4: a group's codes are unpacked to scratch, one byte
// each, then used by tiles of 4 × 16 outputs. Bound: two of vpmaddubsw and vpmaddwd a clock, 9 of
// them for 8 · 64 operations: 113 a clock and core; all vector operations, at four a clock, allow
// 120.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/avx2/int4.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;
constexpr int kTileRows = 4;
constexpr int64_t kLinesPerSum = 4;  // of int16 sums
constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kLeastBlockRows = 48, kMostBlockRows = 384;
constexpr int64_t kMostInlineRows = 4;

inline __m256i broadcast(const int8_t* from) {
  int32_t word;
  std::memcpy(&word, from, 4);
  return _mm256_set1_epi32(word);
}
inline __m256i low_nibbles(__m256i words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
inline __m256i high_nibbles(__m256i words) { return low_nibbles(_mm256_srli_epi16(words, 4)); }

// sum += products, in int16. As an intrinsic g++ 12 regroups the additions of a whole unrolled
// loop, which keeps every product in memory until the end.
inline void add_int16(__m256i& sum, __m256i products) {
  __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(products));
}

// acc += the int16 sums, widened.
template <int MR, int kVectors>
inline __attribute__((always_inline)) void flush(const __m256i (&sums)[MR][kVectors],
                                                 __m256i (&acc)[MR][kVectors]) {
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    __m256i& to = acc[i / kVectors][i % kVectors];
    to = _mm256_add_epi32(
        to, _mm256_madd_epi16(sums[i / kVectors][i % kVectors], _mm256_set1_epi16(1)));
  });
}

// One line as it lies in the panel: 8 columns of kVectors registers of rows.
template <bool first, int MR, int kVectors>
inline __attribute__((always_inline)) void add_packed_line(const std::byte* line, const int8_t* q,
                                                           int64_t q_stride,
                                                           __m256i (&sums)[MR][kVectors]) {
  if constexpr (kVectors > 1)
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes, _MM_HINT_T0);
  if constexpr (kVectors > 2)
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetchBytes + 64, _MM_HINT_T0);
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    const __m256i words = load(line + 32 * v);
    const __m256i low = low_nibbles(words), high = high_nibbles(words);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      const __m256i a = _mm256_maddubs_epi16(low, broadcast(q + m * q_stride));
      const __m256i b = _mm256_maddubs_epi16(high, broadcast(q + m * q_stride + 4));
      if constexpr (first)
        sums[m][v] = a;
      else
        add_int16(sums[m][v], a);
      add_int16(sums[m][v], b);
    });
  });
}

// Half a line of unpacked codes [16 rows][4 columns].
template <bool first, int MR>
inline __attribute__((always_inline)) void add_unpacked_half_line(
    const std::byte* codes, const int8_t* q, int64_t q_stride, __m256i (&sums)[MR][kTileVectors]) {
  const __m256i w0 = load(codes), w1 = load(codes + 32);
  repeat<MR>([&](auto m) __attribute__((always_inline)) {
    const __m256i value = broadcast(q + m * q_stride);
    const __m256i a = _mm256_maddubs_epi16(w0, value), b = _mm256_maddubs_epi16(w1, value);
    if constexpr (first) {
      sums[m][0] = a;
      sums[m][1] = b;
    } else {
      add_int16(sums[m][0], a);
      add_int16(sums[m][1], b);
    }
  });
}

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
  __m256i acc[MR][kVectors], sums[MR][kVectors];
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = _mm256_setzero_si256();
  });
  const std::byte* line = args.codes + 32 * first;
  const int8_t* q = args.q;
  for (int64_t left = args.lines; left > 0; left -= kLinesPerSum) {
    add_packed_line<true>(line, q, args.q_stride, sums);
    line += kLineBytes;
    q += 8;
    const int64_t count = left < kLinesPerSum ? left : kLinesPerSum;
#pragma GCC unroll 1
    for (int64_t i = 1; i < count; ++i, line += kLineBytes, q += 8)
      add_packed_line<false>(line, q, args.q_stride, sums);
    flush(sums, acc);
  }
  add_group<MR, kVectors>(acc, *args.group, first, args.group_sums, args.group_sums_stride,
                          args.sums);
}

template <int MR>
void multiply_unpacked(const GroupArgs& args, int first) {
  constexpr int64_t kHalfLineBytes = 4 * kTileColumns;
  __m256i acc[MR][kTileVectors], sums[MR][kTileVectors];
  repeat<MR * kTileVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kTileVectors][i % kTileVectors] = _mm256_setzero_si256();
  });
  const std::byte* codes = args.codes + first / kTileVectors * args.lines * (2 * kHalfLineBytes);
  const int8_t* q = args.q;
  for (int64_t left = args.lines; left > 0; left -= kLinesPerSum) {
    add_unpacked_half_line<true>(codes, q, args.q_stride, sums);
    codes += kHalfLineBytes;
    q += 4;
    const int64_t count = left < kLinesPerSum ? left : kLinesPerSum;
#pragma GCC unroll 1
    for (int64_t i = 1; i < 2 * count; ++i, codes += kHalfLineBytes, q += 4)
      add_unpacked_half_line<false>(codes, q, args.q_stride, sums);
    flush(sums, acc);
  }
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

// Lines → codes [2 halves of the panel][2 · lines][16 rows][4 columns].
void unpack_lines(const std::byte* lines, int64_t count, std::byte* codes) {
  const int64_t half = count * 8 * kTileColumns;
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, codes += 8 * kTileColumns)
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 32 * v, _MM_HINT_T0);
      const __m256i words = load(lines + 32 * v);
      std::byte* to = codes + v / kTileVectors * half + v % kTileVectors * 32;
      store(to, low_nibbles(words));
      store(to + 4 * kTileColumns, high_nibbles(words));
    });
}

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

int64_t block_rows(int64_t k, int64_t m) {
  int64_t rows = kBlockBytes / k;
  rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
  rows -= rows % kTileRows;
  return rows < m ? rows : m;
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
