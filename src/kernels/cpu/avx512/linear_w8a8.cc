// AVX-512 VNNI linears of int8_channel weights and int8 activations:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
//
// By the tiles of int8_tile.h: a line of a panel is used as it lies in memory, no unpacking for any
// M.
#include "kernels/cpu/avx512/int8_tile.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return block_rows(weight.k, m) * (4 * kPanelRows + offset_row_bytes(weight.k));
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0), lines = lines_of(kFormat, weight.k);
  const int64_t most_rows = block_rows(weight.k, args.m), x_stride = offset_row_bytes(weight.k);
  auto* sums =
      reinterpret_cast<int32_t*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  auto* x = reinterpret_cast<uint8_t*>(sums + most_rows * kPanelRows);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    offset_rows(args.q, begin, rows, weight.k, x);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      prefetch_ahead(panel, kChannelHeaderBytes);
      multiply_int8_panel(panel, lines, x, x_stride, rows, sums);
      scale_sums(args, reinterpret_cast<const float*>(panel), begin, rows, sums);
      store_tile(args, index, begin, rows, reinterpret_cast<const float*>(sums));
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW8A8 = {.name = "avx512/linear_w8a8",
                                                  .format = kFormat,
                                                  .activation = Activation::kInt8,
                                                  .isa = Isa::kAvx512,
                                                  .packed_bytes = packed_bytes<kFormat>,
                                                  .pack = pack_panels<kFormat>,
                                                  .scratch_bytes = scratch_bytes,
                                                  .run = run};

}  // namespace whit::cpu
