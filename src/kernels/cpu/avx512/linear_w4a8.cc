// AVX-512 VNNI linears of int4_group weights and int8 activations:
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
//
// By int4_panel.h. Bound: one or two vpdpbusd a clock (by CPU), 128 operations each.
#include "kernels/cpu/avx512/int4_panel.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

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
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  const int64_t most_rows = block_rows(weight.k, args.m);
  std::byte* unpacked = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* sums = reinterpret_cast<float*>(unpacked + unpacked_bytes(weight));
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      multiply_int4_panel(weight, weight.data.as<std::byte>() + index * stride,
                          {.q = args.q.q + begin * args.q.stride,
                           .stride = args.q.stride,
                           .group_sums = args.q.group_sums + begin * groups,
                           .count = rows},
                          unpacked, sums);
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
