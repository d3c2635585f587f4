// AVX-512 VNNI linears of int8_channel weights and floating-point activations, as pairs of int8
// rows (activation_pairs.h):
//   y[m, n] = fma(128, high, low) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
// high and low being the exact sums of the pair's rows. By the tiles of int8_tile.h. Bound: half
// the rate of int8 activations, which is vdpbf16ps's.
#include "kernels/cpu/avx512/activation_pairs.h"
#include "kernels/cpu/avx512/int8_tile.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;

// Of one worker: sums, codes and scales of a block of rows, each pair's high row before its low
// one.
struct Sizes {
  Sizes(const PackedWeight& weight, int64_t m)
      : stride(pair_stride(weight.k)),
        rows(block_rows(2 * weight.k, m)),
        codes_at(4 * kPanelRows * 2 * rows),
        scales_at(codes_at + 2 * rows * stride),
        bytes(scales_at + round_up(4 * rows, 64)) {}
  int64_t stride, rows;
  int64_t codes_at, scales_at, bytes;
};

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) { return Sizes(weight, m).bytes; }

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows / 2, worker);
  if (share.panel_begin == share.panel_end) return;
  const Sizes sizes(weight, args.m);
  std::byte* scratch = worker_scratch(args, sizes.bytes, worker);
  auto* sums = reinterpret_cast<int32_t*>(scratch);
  auto* codes = reinterpret_cast<int8_t*>(scratch + sizes.codes_at);
  auto* x = reinterpret_cast<uint8_t*>(codes);
  auto* x_scales = reinterpret_cast<float*>(scratch + sizes.scales_at);
  const int64_t stride = panel_bytes(kFormat, weight.k, 0), lines = lines_of(kFormat, weight.k);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = share.row_end - begin < sizes.rows ? share.row_end - begin : sizes.rows;
    for (int64_t m = 0; m < rows; ++m) {
      int8_t* high = codes + 2 * m * sizes.stride;
      x_scales[m] = quantize_pair(args.x + (begin + m) * args.x_stride, weight.k, weight.k,
                                  {high, nullptr}, {high + sizes.stride, nullptr});
    }
    for (int64_t row = 0; row < 2 * rows; ++row)
      offset_activations(codes + row * sizes.stride, weight.k, x + row * sizes.stride);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      prefetch_ahead(panel, kChannelHeaderBytes);
      multiply_int8_panel(panel, lines, x, sizes.stride, 2 * rows, sums);
      const auto* scales = reinterpret_cast<const float*>(panel);
      auto* y = reinterpret_cast<float*>(sums);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t v = 0; v < kPanelRows; v += kLanes) {
          const auto sum = [&](int64_t row) {
            return _mm512_cvtepi32_ps(load(sums + row * kPanelRows + v));
          };
          _mm512_storeu_ps(y + m * kPanelRows + v,
                           scaled_pair_sum(sum(2 * m), sum(2 * m + 1), _mm512_loadu_ps(scales + v),
                                           x_scales[m]));
        }
      store_tile(args, index, begin, rows, y);
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW8A16 = {.name = "avx512/linear_w8a16",
                                                   .format = kFormat,
                                                   .activation = Activation::kFloat,
                                                   .isa = Isa::kAvx512,
                                                   .packed_bytes = packed_bytes<kFormat>,
                                                   .pack = pack_panels<kFormat>,
                                                   .scratch_bytes = scratch_bytes,
                                                   .run = run,
                                                   .activation_error = 0.5f / kLargestPair};

}  // namespace whit::cpu
