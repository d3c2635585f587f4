// AVX-512 VNNI linears of int4_group weights and int8 activations:
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
//
// By the products of int4_lines.h.
//
// M ≤ 16: codes are unpacked in registers, two operations a register. More: a group's codes are
// unpacked to scratch, one byte each. Tiles of 8 × 32 outputs. Bound: one or two vpdpbusd a clock
// (by CPU), 128 operations each.
#include <cstring>

#include "kernels/cpu/avx512/int4_lines.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;

// One group of a panel and the rows of activations it meets.
struct GroupArgs {
  const std::byte* codes;  // lines as packed, or unpacked
  int64_t lines;
  const std::byte* scales;  // f16 [32]
  const uint8_t* zeros;     // [32]
  const int8_t* q;
  int64_t q_stride;
  const int32_t* group_sums;
  int64_t group_sums_stride;
  float* sums;  // [rows][32]
};

// sums [MR][32] += the group's dot products, scaled.
template <int MR, Int4Lines codes>
void multiply_group(const GroupArgs& args) {
  __m512 scale[kVectors];
  __m512i zero[kVectors];
  repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
    scale[v] = _mm512_cvtph_ps(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(args.scales + 2 * kLanes * v)));
    zero[v] = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(args.zeros + kLanes * v)));
  });
  multiply_int4_lines<MR, codes>(
      args.codes, args.lines, args.q,
      args.q_stride, [&](int m, int v, __m512i dot) __attribute__((always_inline)) {
        const __m512i sum = _mm512_set1_epi32(args.group_sums[m * args.group_sums_stride]);
        dot = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero[v], sum));
        float* at = args.sums + m * kPanelRows + kLanes * v;
        _mm512_storeu_ps(at,
                         _mm512_fmadd_ps(scale[v], _mm512_cvtepi32_ps(dot), _mm512_loadu_ps(at)));
      });
}

using GroupFunction = void (*)(const GroupArgs&);
template <Int4Lines codes>
constexpr GroupFunction kGroupFunctions[kTileRows] = {
    multiply_group<1, codes>, multiply_group<2, codes>, multiply_group<3, codes>,
    multiply_group<4, codes>, multiply_group<5, codes>, multiply_group<6, codes>,
    multiply_group<7, codes>, multiply_group<8, codes>};

void unpack_lines(const std::byte* lines, int64_t count, std::byte* codes) {
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, codes += kUnpackedLineBytes)
    repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
      _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 64 * v, _MM_HINT_T0);
      const __m512i words = load(lines + 64 * v);
      store(codes + 64 * v, low_nibbles(words));
      store(codes + kLineBytes + 64 * v, high_nibbles(words));
    });
}

template <Int4Lines codes>
void multiply_rows(const GroupArgs& whole, int64_t rows) {
  for (int64_t m = 0; m < rows; m += kTileRows) {
    GroupArgs args = whole;
    args.q += m * whole.q_stride;
    args.group_sums += m * whole.group_sums_stride;
    args.sums += m * kPanelRows;
    const int64_t tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
    kGroupFunctions<codes>[tile_rows - 1](args);
  }
}

// Unpacked codes of one group.
int64_t unpacked_bytes(const PackedWeight& weight) {
  const int64_t columns = weight.group_size < weight.k ? weight.group_size : weight.k;
  return lines_of(kFormat, columns) * kUnpackedLineBytes;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return unpacked_bytes(weight) + 4 * kPanelRows * block_rows(weight.k, m);
}

// acc · x_scale.
void scale_sums(const LinearArgs& args, int64_t row_begin, int64_t rows, float* sums) {
  for (int64_t m = 0; m < rows; ++m, sums += kPanelRows) {
    const __m512 x_scale = _mm512_set1_ps(activation_scale(args.q, row_begin + m));
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(sums + kLanes * v,
                       _mm512_mul_ps(_mm512_loadu_ps(sums + kLanes * v), x_scale));
  }
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t most_rows = block_rows(weight.k, args.m);
  std::byte* unpacked = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<float*>(unpacked + unpacked_bytes(weight));
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
        GroupArgs group{.codes = panel,
                        .lines = lines,
                        .scales = panel + lines * kLineBytes,
                        .zeros = zeros,
                        .q = args.q.q + begin * args.q.stride + g * weight.group_size,
                        .q_stride = args.q.stride,
                        .group_sums = args.q.group_sums + begin * groups + g,
                        .group_sums_stride = groups,
                        .sums = sums};
        if (rows <= kMostInlineRows) {
          multiply_rows<Int4Lines::kPacked>(group, rows);
        } else {
          unpack_lines(panel, lines, unpacked);
          group.codes = unpacked;
          multiply_rows<Int4Lines::kUnpacked>(group, rows);
        }
        prefetch_ahead(panel + lines * kLineBytes, kGroupScaleBytes);
        panel += lines * kLineBytes + kGroupScaleBytes;
      }
      scale_sums(args, begin, rows, sums);
      store_tile(args, index, begin, rows, sums);
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW4A8 = {.name = "avx512/linear_w4a8",
                                                  .format = kFormat,
                                                  .activation = Activation::kInt8,
                                                  .isa = Isa::kAvx512,
                                                  .packed_bytes = packed_bytes<kFormat>,
                                                  .pack = pack_panels<kFormat>,
                                                  .scratch_bytes = scratch_bytes,
                                                  .run = run};

}  // namespace whit::cpu
