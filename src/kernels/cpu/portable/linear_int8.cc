// Linears with int8 activations in plain C++. The same integers and the same sequence of f32
// operations as every other ISA's rows, so results are equal in bits.
//
//   int4_group, two-level
//                 y = float(Σ_g multiple[n, g] · (Σ_k code · q − zero · Σ_k q)) · (step[n] ·
//                 x_scale[m])
//   int4_group    acc = fma(scale[n, g], float(Σ_k code · q − zero · Σ_k q), acc) for g ascending;
//   y = acc · x_scale[m] int8_channel  y = float(Σ_k code · q) · (scale[n] · x_scale[m])
// Integer sums are exact: K ≤ 2³¹ / (128 · 127) = 132,104 columns.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

int64_t scratch_bytes(const PackedWeight&, int64_t) { return 0; }

void dot_int4(const LinearArgs& args, const std::byte* panel, int64_t m, float* sums) {
  const PackedWeight& weight = *args.weight;
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  const auto* zeros = reinterpret_cast<const uint8_t*>(panel);
  panel += zeros_bytes(groups);
  std::fill(sums, sums + kPanelRows, 0.0f);
  for (int64_t g = 0; g < groups; ++g, zeros += kPanelRows) {
    const int64_t columns = std::min(weight.group_size, weight.k - g * weight.group_size);
    const int64_t lines = lines_of(WeightFormat::kInt4Group, columns);
    const auto* codes = reinterpret_cast<const uint8_t*>(panel);
    const int8_t* q = args.q.q + m * args.q.stride + g * weight.group_size;
    int32_t dots[kPanelRows] = {};
    for (int64_t line = 0; line < lines; ++line, q += 8)
      for (int64_t r = 0; r < kPanelRows; ++r, codes += 4)
        for (int64_t j = 0; j < 4; ++j)
          dots[r] += (codes[j] & 15) * q[j] + (codes[j] >> 4) * q[4 + j];
    const auto* scales = reinterpret_cast<const uint16_t*>(codes);
    const int32_t group_sum = args.q.group_sums[m * groups + g];
    for (int64_t r = 0; r < kPanelRows; ++r)
      sums[r] = std::fma(f16_to_f32(scales[r]), static_cast<float>(dots[r] - zeros[r] * group_sum),
                         sums[r]);
    panel += lines * kLineBytes + kGroupScaleBytes;
  }
  const float scale = activation_scale(args.q, m);
  for (int64_t r = 0; r < kPanelRows; ++r) sums[r] *= scale;
}

void dot_int8(const LinearArgs& args, const std::byte* panel, int64_t m, float* sums) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const auto* codes = reinterpret_cast<const int8_t*>(panel + kChannelHeaderBytes);
  const int64_t lines = lines_of(WeightFormat::kInt8Channel, args.weight->k);
  const int8_t* q = args.q.q + m * args.q.stride;
  int32_t dots[kPanelRows] = {};
  for (int64_t line = 0; line < lines; ++line, q += 4)
    for (int64_t r = 0; r < kPanelRows; ++r, codes += 4)
      for (int64_t j = 0; j < 4; ++j) dots[r] += codes[j] * q[j];
  const float scale = activation_scale(args.q, m);
  for (int64_t r = 0; r < kPanelRows; ++r)
    sums[r] = static_cast<float>(dots[r]) * (scales[r] * scale);
}

void dot_two_level(const LinearArgs& args, const std::byte* panel, int64_t m, float* sums) {
  const PackedWeight& weight = *args.weight;
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  const TwoLevelPanel parts(panel, groups);
  const auto* codes = reinterpret_cast<const uint8_t*>(parts.lines);
  const int8_t* q = args.q.q + m * args.q.stride;
  int32_t totals[kPanelRows] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t columns = std::min(weight.group_size, weight.k - g * weight.group_size);
    int32_t dots[kPanelRows] = {};
    for (int64_t line = 0; line < lines_of(WeightFormat::kInt4Group, columns); ++line, q += 8)
      for (int64_t r = 0; r < kPanelRows; ++r, codes += 4)
        for (int64_t j = 0; j < 4; ++j)
          dots[r] += (codes[j] & 15) * q[j] + (codes[j] >> 4) * q[4 + j];
    const int32_t group_sum = args.q.group_sums[m * groups + g];
    for (int64_t r = 0; r < kPanelRows; ++r)
      totals[r] += parts.multiples[g * kPanelRows + r] * dots[r] -
                   parts.shares[g * kPanelRows + r] * group_sum;
  }
  const float scale = activation_scale(args.q, m);
  for (int64_t r = 0; r < kPanelRows; ++r)
    sums[r] = static_cast<float>(totals[r]) * (parts.steps[r] * scale);
}

template <int64_t (*bytes_of_panels)(int64_t, int64_t, int64_t),
          void (*dot)(const LinearArgs&, const std::byte*, int64_t, float*)>
void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, 1, worker);
  const int64_t stride = bytes_of_panels(kPanelRows, weight.k, weight.group_size);
  for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel)
    for (int64_t m = share.row_begin; m < share.row_end; ++m) {
      float sums[kPanelRows];
      dot(args, weight.data.as<std::byte>() + panel * stride, m, sums);
      store_tile(args, panel, m, 1, sums);
    }
}

template <WeightFormat format, void (*dot)(const LinearArgs&, const std::byte*, int64_t, float*)>
constexpr LinearKernel row(std::string_view name) {
  return {.name = name,
          .format = format,
          .activation = Activation::kInt8,
          .isa = Isa::kPortable,
          .packed_bytes = packed_bytes<format>,
          .pack = pack_panels<format>,
          .scratch_bytes = scratch_bytes,
          .run = run<packed_bytes<format>, dot>};
}

}  // namespace

constinit const LinearKernel kPortableLinearInt8[3] = {
    row<WeightFormat::kInt4Group, dot_int4>("portable/linear_w4a8"),
    row<WeightFormat::kInt8Channel, dot_int8>("portable/linear_w8a8"),
    {.name = "portable/linear_w4a8_two_level",
     .format = WeightFormat::kInt4Group,
     .activation = Activation::kInt8,
     .isa = Isa::kPortable,
     .packed_bytes = packed_bytes_two_level,
     .pack = pack_panels_two_level,
     .scratch_bytes = scratch_bytes,
     .run = run<packed_bytes_two_level, dot_two_level>,
     .two_level = true},
};

}  // namespace whit::cpu
