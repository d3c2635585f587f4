// Weights of one linear, [N, K] row-major, in floating point or in a canonical low-bit form.
//
//   kF32, kF16, kBF16   data [N, K]
//   kInt4Group          data u8 [N, ceil(K/2)]: element k of a row in byte k/2, even k in the low
//   nibble, codes 0…15;
//                       scales f16 [N, G]; zeros u8 [N, ceil(G/2)], zero points 0…15 packed the
//                       same way, or absent for symmetric weights (zero point 8).  G = ceil(K /
//                       group_size);  w = (code − zero) · scale.
//                       Two-level scales (as QServe's progressive groups, Lin et al. 2024): the
//                       scales of a row are multiples 1…15 of one step, and |(code − zero) ·
//                       multiple| ≤ 127. The row is then one of int8 codes with a scale of its own,
//                       and its sums over int8 activations are integers to the end. The step has 7
//                       significant bits, so that every multiple of it is an f16.
//   kInt8Channel        data i8 [N, K], codes −127…127; scales f32 [N];  w = code · scale.
//   kFp8Channel         data e4m3 [N, K] (tensor/e4m3.h), none of them NaN; scales f32 [N];
//                       w = number · scale.
//
// An engine directory stores exactly these bytes; what an ISA wants is packed from them at load
// (kernels/cpu/table.h).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/checked.h"
#include "quant/range.h"
#include "tensor/tensor.h"

namespace whit {

enum class WeightFormat : uint8_t { kF32, kF16, kBF16, kInt4Group, kInt8Channel, kFp8Channel };

// "f32", "f16", "bf16", "int4_group", "int8_channel", "fp8_channel"
std::string_view name(WeightFormat format);

// Non-owning; trivially copyable.
struct WeightView {
  WeightFormat format = WeightFormat::kF32;
  int64_t n = 0, k = 0;
  int64_t group_size = 0;  // kInt4Group
  bool two_level = false;  // kInt4Group: the scales are known to be two-level ones
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
  bool two_level = false;
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
//   compressed-tensors. int8:             scale = absmax/127. fp8: scale = absmax/448.
// clip [N, G] f32, optional: values of a group are clamped to ±clip before its range is taken.
QuantizedTensor make_quantized(WeightFormat format, int64_t n, int64_t k, int64_t group_size,
                               bool symmetric, bool two_level = false);
void quantize_rows_rtn(const float* w, int64_t row_begin, int64_t row_end, const float* clip,
                       QuantizedTensor& out);

// The range → (scale, zero) rule of one int4 group, shared by every algorithm so that searched and
// stored codes agree.
struct Int4Params {
  float scale;  // exactly representable in f16, > 0
  float zero;   // 0…15, integral
};
Int4Params int4_params(float min, float max, bool symmetric);
// The groups' ranges in a row w [K], within ±clip [G] where that is given.
std::vector<ValueRange> clipped_ranges(const float* w, int64_t k, int64_t group_size,
                                       const float* clip);
// The same for all groups of a row: ranges [G] → params [G]. Two-level: the step is the least that
// holds the largest group, the multiples are the nearest.
void int4_row_params(std::span<const ValueRange> ranges, bool symmetric, bool two_level,
                     Int4Params* params);

// Two-level scales. The largest multiple of a group by its zero point; a step rounded up, and to
// nearest, to what two-level scales may have.
inline int most_multiple(float zero) {
  const int largest = static_cast<int>(zero > 7.5f ? zero : 15 - zero);
  return largest <= 8 ? 15 : 127 / largest;
}
float two_level_step_above(float step);
float two_level_step_near(float step);
// The step of a row of stored scales, and by group the multiples; throws kInvalidData where the row
// is none of two-level scales. Of several steps that would do the largest is taken, so that equal
// bytes give equal sums.
float two_level_row(const WeightView& w, int64_t row, uint8_t* multiples);

// A row of any low-bit weight divided by a factor > 0: its scales take it, rounded to what they can
// hold.
void divide_row(QuantizedTensor& weight, int64_t row, float by);
// Nearest integer, ties to even, of |x| < 2^22: an addition that any vector unit has.
inline float round_nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }
inline float int4_round_trip(float w, const Int4Params& p, float inverse_scale) {
  float code = round_nearest(w * inverse_scale) + p.zero;
  code = code < 0 ? 0 : code > 15 ? 15 : code;
  return (code - p.zero) * p.scale;
}

}  // namespace whit
