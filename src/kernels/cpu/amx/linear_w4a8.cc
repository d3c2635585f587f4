// AMX linears of int4_group weights and int8 activations, by int4_pass.h:
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
// The same bits as avx512/linear_w4a8; the fewest rows go there altogether, up to 32 by
// int4_few_rows.h.
#include "kernels/cpu/amx/int4_few_rows.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

// Rows of activations per pass over the panels: they should stay in L2.
int64_t pass_rows(int64_t k, int64_t m) {
  constexpr int64_t kPassBytes = 768 << 10, kMostRows = 1024;
  const int64_t rows = std::clamp(kPassBytes / k / kBlockRows * kBlockRows, kBlockRows, kMostRows);
  return std::min(rows, m);
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  const int64_t own =
      unpacked_bytes(weight) + ActivationTiles::scratch_bytes(pass_rows(weight.k, m), weight.k);
  return std::max(
      {own, few_rows_scratch_bytes(weight), kAvx512LinearW4A8.scratch_bytes(weight, m)});
}

void run_few_rows(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, args.m, worker);
  if (share.panel_begin == share.panel_end) return;
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  const Tiles tiles(step_columns(weight), args.m);
  multiply_int4_few_rows(
      weight, share, {args.q.q, args.q.stride, args.m}, codes, [&](int64_t index, const auto& sum) {
        store_rows(args, index, 0, args.m, [&](int64_t i, int64_t v) {
          return _mm512_mul_ps(sum(i, v), _mm512_set1_ps(activation_scale(args.q, i)));
        });
      });
}

void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastFewRows) return kAvx512LinearW4A8.run(args, worker);
  if (args.m <= kMostFewRows) return run_few_rows(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker, pass_rows(weight.k, args.m));
  if (share.panel_begin == share.panel_end) return;
  const int64_t most_rows = even_pass(share.row_end - share.row_begin, pass_rows(weight.k, args.m));
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* copies = reinterpret_cast<int8_t*>(codes + unpacked_bytes(weight));
  const int64_t k_step = step_columns(weight);
  const Tiles tiles(k_step);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = std::min(share.row_end - begin, most_rows);
    const ActivationTiles a(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k, k_step,
                            copies);
    multiply_int4_pass(
        weight, share, a, rows, codes,
        [&](int64_t index, int64_t m, int64_t from, int64_t to) {
          prefetch_residual(args, index, begin + m + from, begin + m + to);
        },
        [&](int64_t index, int64_t m, int64_t some, const float* acc) {
          const RowScales x_scales(args.q, begin + m);
          store_rows(args, index, begin + m, some, [&](int64_t i, int64_t v) {
            return _mm512_mul_ps(_mm512_load_ps(acc + i * kPanelRows + v),
                                 _mm512_set1_ps(x_scales.at[i * x_scales.step]));
          });
        });
  }
}

}  // namespace

constinit const LinearKernel kAmxLinearW4A8 = {.name = "amx/linear_w4a8",
                                               .format = kFormat,
                                               .activation = Activation::kInt8,
                                               .isa = Isa::kAmx,
                                               .packed_bytes = packed_bytes<kFormat>,
                                               .pack = pack_panels<kFormat>,
                                               .scratch_bytes = scratch_bytes,
                                               .run = run};

}  // namespace whit::cpu
