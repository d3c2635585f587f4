// AVX-512 VNNI linears of int4_group weights and floating-point activations, as pairs of int8 rows
// (activation_pairs.h):
//   high, low: acc as in avx512/linear_w4a8
//   y[m, n] = fma(128, high, low) · x_scale[m] (+ bias) (+ residual)
// Bound for many rows: half the rate of int8 activations, twice that of f32 FMAs and more; each
// worker rounds the activations of its rows for itself.
#include "kernels/cpu/avx512/activation_pairs.h"
#include "kernels/cpu/avx512/int4_panel.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

struct Sizes {
  Sizes(const PackedWeight& weight, int64_t m)
      : groups(ceil_div(weight.k, weight.group_size)),
        stride(pair_stride(weight.k)),
        rows(ceil_div(block_rows(weight.k, 2 * m), 2)),
        sums_at(round_up(unpacked_bytes(weight), 64)),
        codes_at(sums_at + 4 * kPanelRows * 2 * rows),
        group_sums_at(codes_at + 2 * rows * stride),
        scales_at(group_sums_at + round_up(4 * groups * 2 * rows, 64)),
        bytes(scales_at + round_up(4 * rows, 64)) {}
  int64_t groups, stride;
  int64_t rows;  // of x a block
  int64_t sums_at, codes_at, group_sums_at, scales_at, bytes;
};

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) { return Sizes(weight, m).bytes; }

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows / 2, worker);
  if (share.panel_begin == share.panel_end) return;
  const Sizes sizes(weight, args.m);
  std::byte* scratch = worker_scratch(args, sizes.bytes, worker);
  auto* sums = reinterpret_cast<float*>(scratch + sizes.sums_at);
  auto* codes = reinterpret_cast<int8_t*>(scratch + sizes.codes_at);
  auto* group_sums = reinterpret_cast<int32_t*>(scratch + sizes.group_sums_at);
  auto* scales = reinterpret_cast<float*>(scratch + sizes.scales_at);
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = share.row_end - begin < sizes.rows ? share.row_end - begin : sizes.rows;
    for (int64_t m = 0; m < rows; ++m) {
      const auto row = [&](int64_t i) {
        return PairRow{codes + i * sizes.stride, group_sums + i * sizes.groups};
      };
      scales[m] = quantize_pair(args.x + (begin + m) * args.x_stride, weight.k, weight.group_size,
                                row(2 * m), row(2 * m + 1));
    }
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      multiply_int4_panel(
          weight, weight.data.as<std::byte>() + index * stride,
          {.q = codes, .stride = sizes.stride, .group_sums = group_sums, .count = 2 * rows},
          scratch, sums);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t v = 0; v < kPanelRows; v += kLanes)
          _mm512_storeu_ps(
              sums + m * kPanelRows + v,
              pair_sum(_mm512_loadu_ps(sums + 2 * m * kPanelRows + v),
                       _mm512_loadu_ps(sums + (2 * m + 1) * kPanelRows + v), scales[m]));
      store_tile(args, index, begin, rows, sums);
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW4A16 = {.name = "avx512/linear_w4a16",
                                                   .format = kFormat,
                                                   .activation = Activation::kFloat,
                                                   .isa = Isa::kAvx512,
                                                   .packed_bytes = packed_bytes<kFormat>,
                                                   .pack = pack_panels<kFormat>,
                                                   .scratch_bytes = scratch_bytes,
                                                   .run = run,
                                                   .activation_error = 0.5f / kLargestPair};

}  // namespace whit::cpu
