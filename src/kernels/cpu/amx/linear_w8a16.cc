// AMX linears of int8_channel weights and floating-point activations, as pairs of int8 rows
// (avx512/activation_pairs.h), on the panels of avx512/linear_w8a16. The same bits as there: sums
// are exact. The fewest rows go there altogether. A block of tiles is the high rows of 16
// activations and their low rows; it meets a whole panel, whose sums stay in their tiles along K.
// Bound: half the rate of int8 activations.
#include "kernels/cpu/amx/pair_tiles.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;
constexpr int64_t kStepBytes = kTileColumns / 4 * kLineBytes;

struct Sizes {
  Sizes(const PackedWeight& weight, int64_t m)
      : rows(pair_pass_rows(weight.k, m)), stride(pair_stride(weight.k)) {
    scales_at = 2 * rows * stride;
    bytes = scales_at + round_up(4 * rows, 64);
  }
  int64_t rows, stride;  // of x a pass; of codes
  int64_t scales_at, bytes;
};

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return std::max(Sizes(weight, m).bytes, kAvx512LinearW8A16.scratch_bytes(weight, m));
}

void run(const LinearArgs& args, const Worker& worker) {
  if (2 * args.m < kLeastRows) return kAvx512LinearW8A16.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const Sizes sizes(weight, args.m);
  const LinearShare share = linear_share(args, kTileRows, worker, sizes.rows);
  if (share.panel_begin == share.panel_end) return;
  std::byte* scratch = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* codes = reinterpret_cast<int8_t*>(scratch);
  auto* x_scales = reinterpret_cast<float*>(scratch + sizes.scales_at);
  const int64_t stride = panel_bytes(kFormat, weight.k, 0);
  const int64_t steps = weight.k / kTileColumns, tail = weight.k % kTileColumns;
  const int64_t tail_bytes = lines_of(kFormat, tail) * kLineBytes;
  alignas(64) std::byte tail_lines[kStepBytes] = {};
  alignas(64) int32_t sums[kBlockRows * kPanelRows];
  const Tiles tiles(kTileColumns);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = std::min(share.row_end - begin, sizes.rows);
    const int64_t padded =
        quantize_pair_tiles(args, begin, rows, weight.k, sizes.stride, codes, x_scales);
    // All rows are where tiles can read them.
    const ActivationTiles a(codes, sizes.stride, 2 * padded, weight.k, kTileColumns, nullptr);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* lines = panel + kChannelHeaderBytes;
      if (tail > 0) std::memcpy(tail_lines, lines + steps * kStepBytes, tail_bytes);
      const auto* scales = reinterpret_cast<const float*>(panel);
      const __m512 scale[2] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + 16)};
      // The next panel, while this one's products run.
      const int64_t turns = std::max<int64_t>(1, padded / kTileRows * steps);
      BlockPrefetch prefetch{panel + stride,
                             index + 1 < share.panel_end ? ceil_div(stride / 64, turns) : 0};
      for (int64_t m = 0; m < padded; m += kTileRows) {
        const int64_t some = std::min(rows - m, kTileRows);
        prefetch_residual(args, index, begin + m, begin + m + some);
        const auto between = [&](int64_t) { prefetch.step(); };
        const Operands now = operands(a, 2 * m, kBlockRows, 0, lines);
        const int32_t* from = nullptr;
        if (steps > 0) {
          multiply_tiles<Ahead::kL1>(now, now, steps, kTileColumns, nullptr, sums, between);
          from = sums;
        }
        if (tail > 0) {
          const Operands end = operands(a, 2 * m, kBlockRows, steps * kTileColumns, tail_lines);
          multiply_tiles<Ahead::kNone>(end, end, 1, kTileColumns, from, sums, between);
        }
        store_rows(args, index, begin + m, some, [&](int64_t i, int64_t v) {
          const int32_t* high = sums + i * kPanelRows + v;
          return scaled_pair_sum(_mm512_cvtepi32_ps(_mm512_load_si512(high)),
                                 _mm512_cvtepi32_ps(_mm512_load_si512(high + kSecondTile)),
                                 scale[v / 16], x_scales[m + i]);
        });
      }
    }
  }
}

}  // namespace

constinit const LinearKernel kAmxLinearW8A16 = {.name = "amx/linear_w8a16",
                                                .format = kFormat,
                                                .activation = Activation::kFloat,
                                                .isa = Isa::kAmx,
                                                .packed_bytes = packed_bytes<kFormat>,
                                                .pack = pack_panels<kFormat>,
                                                .scratch_bytes = scratch_bytes,
                                                .run = run,
                                                .activation_error = 0.5f / kLargestPair};

}  // namespace whit::cpu
