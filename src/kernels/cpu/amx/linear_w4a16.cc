// AMX linears of int4_group weights and floating-point activations, as pairs of int8 rows
// (avx512/activation_pairs.h), by int4_pass.h:
//   y[m, n] = fma(128, high, low) · x_scale[m] (+ bias) (+ residual)
// The same bits as avx512/linear_w4a16; the fewest rows go there altogether, up to 16 by
// int4_few_rows.h. Of more, a block of tiles is the high
// rows of 16 activations and their low rows. Bound: half the rate of int8 activations, which is
// tdpbf16ps's.
#include "kernels/cpu/amx/int4_few_rows.h"
#include "kernels/cpu/amx/pair_tiles.h"

namespace whit::cpu {
namespace {

struct Sizes {
  Sizes(const PackedWeight& weight, int64_t m)
      : rows(pair_pass_rows(weight.k, m)), stride(pair_stride(weight.k)) {
    codes_at = round_up(unpacked_bytes(weight), 64);
    scales_at = codes_at + 2 * rows * stride;
    bytes = scales_at + round_up(4 * rows, 64);
  }
  int64_t rows, stride;  // of x a pass; of codes
  int64_t codes_at, scales_at, bytes;
};

// Codes of a group in turn, then the rows of both kinds.
int64_t few_rows_bytes(const PackedWeight& weight) {
  return few_rows_scratch_bytes(weight) + kMostFewRows * pair_stride(weight.k);
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return std::max({Sizes(weight, m).bytes, few_rows_bytes(weight),
                   kAvx512LinearW4A16.scratch_bytes(weight, m)});
}

// All high rows come first.
void run_few_rows(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, args.m, worker);
  if (share.panel_begin == share.panel_end) return;
  std::byte* scratch = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* codes = reinterpret_cast<int8_t*>(scratch + few_rows_scratch_bytes(weight));
  const int64_t stride = pair_stride(weight.k);
  float scales[kMostFewRows / 2];
  for (int64_t m = 0; m < args.m; ++m)
    scales[m] =
        quantize_pair(args.x + m * args.x_stride, weight.k, weight.group_size,
                      {codes + m * stride, nullptr}, {codes + (args.m + m) * stride, nullptr});
  const Tiles tiles(step_columns(weight), 2 * args.m);
  multiply_int4_few_rows(weight, share, {codes, stride, 2 * args.m}, scratch,
                         [&](int64_t index, const auto& sum) {
                           store_rows(args, index, 0, args.m, [&](int64_t i, int64_t v) {
                             return pair_sum(sum(i, v), sum(args.m + i, v), scales[i]);
                           });
                         });
}

void run(const LinearArgs& args, const Worker& worker) {
  if (2 * args.m < kLeastFewRows) return kAvx512LinearW4A16.run(args, worker);
  if (2 * args.m <= kMostFewRows) return run_few_rows(args, worker);
  const PackedWeight& weight = *args.weight;
  const Sizes sizes(weight, args.m);
  const LinearShare share = linear_share(args, kTileRows, worker, sizes.rows);
  if (share.panel_begin == share.panel_end) return;
  std::byte* scratch = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* codes = reinterpret_cast<int8_t*>(scratch + sizes.codes_at);
  auto* scales = reinterpret_cast<float*>(scratch + sizes.scales_at);
  const int64_t k_step = step_columns(weight);
  const Tiles tiles(k_step);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += sizes.rows) {
    const int64_t rows = std::min(share.row_end - begin, sizes.rows);
    const int64_t padded =
        quantize_pair_tiles(args, begin, rows, weight.group_size, sizes.stride, codes, scales);
    // All rows are where tiles can read them.
    const ActivationTiles a(codes, sizes.stride, 2 * padded, weight.k, k_step, nullptr);
    multiply_int4_pass(
        weight, share, a, 2 * padded, scratch,
        [&](int64_t index, int64_t m, int64_t from, int64_t to) {
          const int64_t row = begin + m / 2, end = begin + rows;
          prefetch_residual(args, index, std::min(row + from / 2, end),
                            std::min(row + to / 2, end));
        },
        [&](int64_t index, int64_t m, int64_t, const float* acc) {
          const int64_t row = m / 2, some = std::min(rows - row, kTileRows);
          store_rows(args, index, begin + row, some, [&](int64_t i, int64_t v) {
            const float* high = acc + i * kPanelRows + v;
            return pair_sum(_mm512_load_ps(high), _mm512_load_ps(high + kSecondTile),
                            scales[row + i]);
          });
        });
  }
}

}  // namespace

constinit const LinearKernel kAmxLinearW4A16 = {.name = "amx/linear_w4a16",
                                                .format = kFormat,
                                                .activation = Activation::kFloat,
                                                .isa = Isa::kAmx,
                                                .packed_bytes = packed_bytes<kFormat>,
                                                .pack = pack_panels<kFormat>,
                                                .scratch_bytes = scratch_bytes,
                                                .run = run,
                                                .activation_error = 0.5f / kLargestPair};

}  // namespace whit::cpu
