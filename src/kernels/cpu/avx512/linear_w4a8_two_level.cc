// AVX-512 VNNI linears of int4_group weights of two-level scales and int8 activations:
//   y[m, n] = float(Σ_k (code − zero) · multiple · q) · (step[n] · x_scale[m]) (+ bias) (+
//   residual)
//
// Blocks of 512 columns of a panel become int8 codes in L1, which the tiles of int8_tile.h
// multiply.
#include "kernels/cpu/avx512/int8_tile.h"
#include "kernels/cpu/avx512/two_level.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr int64_t kUnpackedBytes = kBlockLines * kLineBytes;

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return kUnpackedBytes + block_rows(weight.k, m) * (4 * kPanelRows + offset_row_bytes(weight.k));
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = two_level_panel_bytes(weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t lines = lines_of(WeightFormat::kInt4Group, weight.k);
  const int64_t most_rows = block_rows(weight.k, args.m), x_stride = offset_row_bytes(weight.k);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<int32_t*>(codes + kUnpackedBytes);
  auto* x = reinterpret_cast<uint8_t*>(sums + most_rows * kPanelRows);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    offset_rows(args.q, begin, rows, weight.k, x);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const TwoLevelPanel panel(weight.data.as<std::byte>() + index * stride, groups);
      start_sums(panel.sums, rows, sums);
      for (int64_t line = 0; line < lines; line += kBlockLines / 2) {
        const int64_t end = lines - line < kBlockLines / 2 ? lines : line + kBlockLines / 2;
        unpack_two_level(panel, weight.group_size, line, end, codes);
        multiply_rows(codes, 2 * (end - line), x + 8 * line, x_stride, rows, sums);
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
