// AMX linears of int8_channel weights and int8 activations, on the panels of avx512/linear_w8a8:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
// The same bits as there: integer sums are exact. Few rows go there altogether.
#include <algorithm>

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;
// Columns whose 32 rows of codes stay in L1 (32 KB) while the rows of a pass go by.
constexpr int64_t kBlockColumns = 1024;

int64_t sums_bytes(const PackedWeight& weight, int64_t m) {
  return round_up(pass_rows(weight.k, m), kTileRows) * kPanelRows * 4;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return std::max(
      sums_bytes(weight, m) + tiles_bytes(pass_rows(weight.k, m), weight.k, kTileColumns),
      kAvx512LinearW8A8.scratch_bytes(weight, m));
}

void store_sums(const LinearArgs& args, int64_t index, const std::byte* panel, int64_t row_begin,
                int64_t rows, const int32_t* sums) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const __m512 scale[2] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + 16)};
  store_rows(args, index, row_begin, rows, [&](int64_t i, int64_t v) {
    const __m512 x_scale = _mm512_set1_ps(activation_scale(args.q, row_begin + i));
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * kPanelRows + v));
    return _mm512_mul_ps(sum, _mm512_mul_ps(scale[v / 16], x_scale));
  });
}

void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastRows) return kAvx512LinearW8A8.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker);
  if (share.panel_begin == share.panel_end) return;
  constexpr int64_t kStepBytes = kTileColumns / 4 * kLineBytes;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0);
  const int64_t whole = weight.k / kTileColumns * kTileColumns, tail = weight.k - whole;
  const int64_t a_stride = round_up(weight.k, kTileColumns) * kTileRows;
  const int64_t most_rows = pass_rows(weight.k, args.m);
  auto* sums =
      reinterpret_cast<int32_t*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  auto* a = reinterpret_cast<int8_t*>(sums) + sums_bytes(weight, args.m);
  alignas(64) std::byte tail_lines[kStepBytes] = {};
  const Tiles tiles(kTileColumns);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = std::min(share.row_end - begin, most_rows);
    pack_tiles(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k, kTileColumns, a);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* lines = panel + kChannelHeaderBytes;
      if (tail > 0)
        std::memcpy(tail_lines, lines + whole / kTileColumns * kStepBytes,
                    lines_of(kFormat, tail) * kLineBytes);
      for (int64_t column = 0; column < weight.k; column += kBlockColumns) {
        const int64_t end = column + kBlockColumns;
        const int64_t steps = (std::min(end, whole) - column) / kTileColumns;
        const Sums start = column == 0 ? Sums::kStart : Sums::kContinue;
        for (int64_t m = 0; m < rows; m += kBlockRows) {
          const int64_t some = std::min(rows - m, kBlockRows);
          const int8_t* block = a + m / kTileRows * a_stride + column * kTileRows;
          int32_t* c = sums + m * kPanelRows;
          multiply_tiles(some, block, a_stride, lines + column / kTileColumns * kStepBytes, steps,
                         kTileColumns, start, c);
          if (end < weight.k) continue;
          if (tail > 0)
            multiply_tiles(some, block + (whole - column) * kTileRows, a_stride, tail_lines, 1,
                           kTileColumns, Sums::kContinue, c);
          store_sums(args, index, panel, begin + m, some, c);
        }
      }
    }
  }
}

}  // namespace

constinit const LinearKernel kAmxLinearW8A8 = {.name = "amx/linear_w8a8",
                                               .format = kFormat,
                                               .activation = Activation::kInt8,
                                               .isa = Isa::kAmx,
                                               .packed_bytes = packed_bytes<kFormat>,
                                               .pack = pack_panels<kFormat>,
                                               .scratch_bytes = scratch_bytes,
                                               .run = run};

}  // namespace whit::cpu
