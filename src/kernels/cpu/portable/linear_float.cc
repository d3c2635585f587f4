// Linears with f32 activations in plain C++: y[m, n] = Σ_k w[n, k] · x[m, k] (+ bias) (+ residual).
//
// Order: k ascending, one multiplication and one addition per term (no fused multiply-add: x86-64
// has none). int4 weights are taken as (code − zero) · scale, which f32 holds exactly; int8_channel
// and fp8_channel sum code · x and multiplies the sum by the row's scale. A panel is widened to f32
// once, then used by every row of x.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/linear_rows.h"
#include "tensor/e4m3.h"

namespace whit::cpu {
namespace {

// Each writes the panel as f32 [K, 32] to `out`; words past K are not written.
void widen_f32(const PackedWeight& weight, const std::byte* panel, float* out) {
  std::memcpy(out, panel, weight.k * kLineBytes);
}

void widen_bf16(const PackedWeight& weight, const std::byte* panel, float* out) {
  const auto* values = reinterpret_cast<const uint16_t*>(panel);
  for (int64_t k = 0; k < weight.k; ++k)
    for (int64_t r = 0; r < kPanelRows; ++r)
      out[k * kPanelRows + r] = bf16_to_f32(values[(k / 2 * kPanelRows + r) * 2 + k % 2]);
}

void widen_int8(const PackedWeight& weight, const std::byte* panel, float* out) {
  const auto* codes = reinterpret_cast<const int8_t*>(panel + kChannelHeaderBytes);
  for (int64_t k = 0; k < weight.k; ++k)
    for (int64_t r = 0; r < kPanelRows; ++r)
      out[k * kPanelRows + r] = codes[(k / 4 * kPanelRows + r) * 4 + k % 4];
}

void widen_fp8(const PackedWeight& weight, const std::byte* panel, float* out) {
  const auto* codes = reinterpret_cast<const uint8_t*>(panel + kChannelHeaderBytes);
  for (int64_t k = 0; k < weight.k; ++k)
    for (int64_t r = 0; r < kPanelRows; ++r)
      out[k * kPanelRows + r] = e4m3_to_f32(codes[(k / 4 * kPanelRows + r) * 4 + k % 4]);
}

void widen_int4(const PackedWeight& weight, const std::byte* panel, float* out) {
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  const auto* zeros = reinterpret_cast<const uint8_t*>(panel);
  panel += zeros_bytes(groups);
  for (int64_t g = 0; g < groups; ++g, zeros += kPanelRows) {
    const int64_t columns = std::min(weight.group_size, weight.k - g * weight.group_size);
    const int64_t lines = lines_of(WeightFormat::kInt4Group, columns);
    const auto* codes = reinterpret_cast<const uint8_t*>(panel);
    const auto* stored = reinterpret_cast<const uint16_t*>(panel + lines * kLineBytes);
    float scales[kPanelRows];
    for (int64_t r = 0; r < kPanelRows; ++r) scales[r] = f16_to_f32(stored[r]);
    for (int64_t k = 0; k < columns; ++k, out += kPanelRows)
      for (int64_t r = 0; r < kPanelRows; ++r) {
        const int pair = codes[(k / 8 * kPanelRows + r) * 4 + k % 4];
        const int code = k % 8 < 4 ? pair & 15 : pair >> 4;
        out[r] = static_cast<float>(code - zeros[r]) * scales[r];
      }
    panel += lines * kLineBytes + kGroupScaleBytes;
  }
}

int64_t scratch_bytes(const PackedWeight& packed, int64_t) { return packed.k * kLineBytes; }

template <WeightFormat format, void (*widen)(const PackedWeight&, const std::byte*, float*)>
void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, 1, worker);
  auto* widened =
      reinterpret_cast<float*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  const int64_t stride = panel_bytes(format, weight.k, weight.group_size);
  for (int64_t panel = share.panel_begin; panel < share.panel_end; ++panel) {
    const std::byte* packed = weight.data.as<std::byte>() + panel * stride;
    widen(weight, packed, widened);
    for (int64_t m = share.row_begin; m < share.row_end; ++m) {
      const float* x = args.x + m * args.x_stride;
      float sums[kPanelRows] = {};
      for (int64_t k = 0; k < weight.k; ++k)
        for (int64_t r = 0; r < kPanelRows; ++r) sums[r] += widened[k * kPanelRows + r] * x[k];
      if constexpr (scaled_rows(format)) {
        const auto* scales = reinterpret_cast<const float*>(packed);
        for (int64_t r = 0; r < kPanelRows; ++r) sums[r] *= scales[r];
      }
      store_tile(args, panel, m, 1, sums);
    }
  }
}

template <WeightFormat format, void (*widen)(const PackedWeight&, const std::byte*, float*)>
constexpr LinearKernel row(std::string_view name) {
  return {.name = name,
          .format = format,
          .activation = Activation::kFloat,
          .isa = Isa::kPortable,
          .packed_bytes = packed_bytes<format>,
          .pack = pack_panels<format>,
          .scratch_bytes = scratch_bytes,
          .run = run<format, widen>};
}

}  // namespace

constinit const LinearKernel kPortableLinearFloat[5] = {
    row<WeightFormat::kF32, widen_f32>("portable/linear_f32"),
    row<WeightFormat::kBF16, widen_bf16>("portable/linear_bf16"),
    row<WeightFormat::kInt4Group, widen_int4>("portable/linear_w4a16"),
    row<WeightFormat::kInt8Channel, widen_int8>("portable/linear_w8a16"),
    row<WeightFormat::kFp8Channel, widen_fp8>("portable/linear_fp8"),
};

}  // namespace whit::cpu
