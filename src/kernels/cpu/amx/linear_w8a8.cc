// AMX linears of int8_channel weights and int8 activations, on the panels of avx512/linear_w8a8:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
// The same bits as there: integer sums are exact. Few rows go there altogether.
#include <algorithm>

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;

int64_t own_scratch_bytes(const PackedWeight& weight, int64_t m) {
  return tiles_bytes(pass_rows(weight.k, m), weight.k, kTileColumns);
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return std::max(own_scratch_bytes(weight, m), kAvx512LinearW8A8.scratch_bytes(weight, m));
}

// c → f32 in place, times the scales.
void scale_sums(const LinearArgs& args, const std::byte* panel, int64_t row_begin, int64_t rows,
                int32_t* c) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t v = 0; v < kPanelRows; v += 16, c += 16) {
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + v),
                                         _mm512_set1_ps(activation_scale(args.q, row_begin + m)));
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(c));
      _mm512_storeu_ps(c, _mm512_mul_ps(sum, scale));
    }
}

void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastRows) return kAvx512LinearW8A8.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0);
  const int64_t whole_steps = weight.k / kTileColumns, tail = weight.k % kTileColumns;
  const int64_t steps = whole_steps + (tail > 0 ? 1 : 0),
                a_stride = steps * kTileRows * kTileColumns;
  const int64_t most_rows = pass_rows(weight.k, args.m);
  auto* a = reinterpret_cast<int8_t*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  alignas(64) int32_t c[kBlockRows * kPanelRows], tail_c[kBlockRows * kPanelRows];
  alignas(64) std::byte tail_lines[kTileColumns / 4 * kLineBytes] = {};
  const Tiles tiles(kTileColumns);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = std::min(share.row_end - begin, most_rows);
    pack_tiles(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k, kTileColumns, a);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* lines = panel + kChannelHeaderBytes;
      const std::byte* last = lines + whole_steps * (kTileColumns / 4) * kLineBytes;
      if (tail > 0) std::memcpy(tail_lines, last, lines_of(kFormat, tail) * kLineBytes);
      for (int64_t m = 0; m < rows; m += kBlockRows) {
        const int64_t some = std::min(rows - m, kBlockRows);
        const int8_t* block = a + m / kTileRows * a_stride;
        multiply_tiles(some, block, a_stride, lines, whole_steps, kTileColumns, c);
        if (tail > 0) {
          multiply_tiles(some, block + whole_steps * kTileRows * kTileColumns, a_stride, tail_lines,
                         1, kTileColumns, tail_c);
          for (int64_t i = 0; i < some * kPanelRows; ++i) c[i] += tail_c[i];
        }
        scale_sums(args, panel, begin + m, some, c);
        store_tile(args, index, begin + m, some, reinterpret_cast<const float*>(c));
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
