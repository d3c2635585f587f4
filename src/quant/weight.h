// Weights of one linear, [N, K] row-major, in floating point or in a canonical low-bit form.
//
//   kF32, kF16, kBF16   data [N, K]
//   kInt4Group          data u8 [N, ceil(K/2)]: element k of a row in byte k/2, even k in the low
//   nibble, codes 0…15;
//                       scales f16 [N, G]; zeros u8 [N, ceil(G/2)], zero points 0…15 packed the
//                       same way, or absent for symmetric weights (zero point 8).  G = ceil(K /
//                       group_size);  w = (code − zero) · scale.
//   kInt8Channel        data i8 [N, K], codes −127…127; scales f32 [N];  w = code · scale.
//
// An engine directory stores exactly these bytes; what an ISA wants is packed from them at load
// (kernels/cpu/table.h).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/checked.h"
#include "tensor/tensor.h"

namespace whit {

enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kInt4Group, kInt8Channel };

std::string_view name(WeightFormat format);  // "f32", "f16", "bf16", "int4_group", "int8_channel"

// Non-owning; trivially copyable.
struct WeightView {
  WeightFormat format = WeightFormat::kF32;
  int64_t n = 0, k = 0;
  int64_t group_size = 0;  // kInt4Group
  const void* data = nullptr;
  const void* scales = nullptr;    // f16 [N, G] or f32 [N]
  const uint8_t* zeros = nullptr;  // kInt4Group asymmetric only

  int64_t groups() const { return group_size == 0 ? 0 : ceil_div(k, group_size); }
  int64_t data_row_bytes() const;
  int64_t scale_row_bytes() const;
  int64_t zero_row_bytes() const;
  // Bytes of data, scales and zeros together: what a portable engine stores for it.
  int64_t bytes() const;
};

// Owner of a low-bit weight.
struct QuantizedTensor {
  WeightFormat format = WeightFormat::kInt8Channel;
  int64_t n = 0, k = 0, group_size = 0;
  Tensor data, scales, zeros;
  WeightView view() const;
};

// Writes rows [row_begin, row_end) of w as f32 [rows, K].
void dequantize_rows(const WeightView& w, int64_t row_begin, int64_t row_end, float* out);

// Round-to-nearest quantization of w, f32 [N, K], of rows [row_begin, row_end) into `out` (already
// shaped by make_quantized). Scales are rounded to their stored precision before codes are chosen
// with them.
//   int4, asymmetric: scale = (max − min)/15 with 0 in range, zero = round(−min/scale), as in AWQ
//   (Lin et al. 2024). int4, symmetric:  scale = absmax/7.5 → codes −8…7, the grid of
//   compressed-tensors. int8:             scale = absmax/127.
// clip [N, G] f32, optional: values of a group are clamped to ±clip before its range is taken.
QuantizedTensor make_quantized(WeightFormat format, int64_t n, int64_t k, int64_t group_size,
                               bool symmetric);
void quantize_rows_rtn(const float* w, int64_t row_begin, int64_t row_end, const float* clip,
                       QuantizedTensor& out);

// The range → (scale, zero) rule of one int4 group, shared by every algorithm so that searched and
// stored codes agree.
struct Int4Params {
  float scale;  // exactly representable in f16, > 0
  float zero;   // 0…15, integral
};
Int4Params int4_params(float min, float max, bool symmetric);
// Nearest integer, ties to even, of |x| < 2^22: an addition that any vector unit has.
inline float round_nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }
inline float int4_round_trip(float w, const Int4Params& p, float inverse_scale) {
  float code = round_nearest(w * inverse_scale) + p.zero;
  code = code < 0 ? 0 : code > 15 ? 15 : code;
  return (code - p.zero) * p.scale;
}

}  // namespace whit
