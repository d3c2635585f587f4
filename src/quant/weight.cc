#include "quant/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "tensor/e4m3.h"

namespace whit {

std::string_view name(WeightFormat format) {
  constexpr std::string_view kNames[] = {"f32",        "f16",          "bf16",
                                         "int4_group", "int8_channel", "fp8_channel"};
  return kNames[static_cast<int>(format)];
}

int64_t WeightView::data_row_bytes() const {
  switch (format) {
    case WeightFormat::kF32:
      return 4 * k;
    case WeightFormat::kF16:
    case WeightFormat::kBF16:
      return 2 * k;
    case WeightFormat::kInt4Group:
      return ceil_div(k, 2);
    case WeightFormat::kInt8Channel:
    case WeightFormat::kFp8Channel:
      return k;
  }
  return 0;
}

int64_t WeightView::scale_row_bytes() const {
  if (format == WeightFormat::kInt4Group) return 2 * groups();
  return format == WeightFormat::kInt8Channel || format == WeightFormat::kFp8Channel ? 4 : 0;
}

int64_t WeightView::zero_row_bytes() const { return zeros == nullptr ? 0 : ceil_div(groups(), 2); }

int64_t WeightView::bytes() const {
  return n * (data_row_bytes() + scale_row_bytes() + zero_row_bytes());
}

WeightView QuantizedTensor::view() const {
  return {.format = format,
          .n = n,
          .k = k,
          .group_size = group_size,
          .two_level = two_level,
          .data = data.data<void>(),
          .scales = scales.data<void>(),
          .zeros = zeros.empty() ? nullptr : zeros.data<uint8_t>()};
}

void dequantize_rows(const WeightView& w, int64_t row_begin, int64_t row_end, float* out) {
  const auto* bytes = static_cast<const uint8_t*>(w.data);
  for (int64_t row = row_begin; row < row_end; ++row, out += w.k) {
    const uint8_t* from = bytes + row * w.data_row_bytes();
    switch (w.format) {
      case WeightFormat::kF32:
        std::memcpy(out, from, 4 * w.k);
        break;
      case WeightFormat::kF16:
        for (int64_t k = 0; k < w.k; ++k) {
          uint16_t bits;
          std::memcpy(&bits, from + 2 * k, 2);
          out[k] = f16_to_f32(bits);
        }
        break;
      case WeightFormat::kBF16:
        for (int64_t k = 0; k < w.k; ++k) {
          uint16_t bits;
          std::memcpy(&bits, from + 2 * k, 2);
          out[k] = bf16_to_f32(bits);
        }
        break;
      case WeightFormat::kInt8Channel: {
        const float scale = static_cast<const float*>(w.scales)[row];
        for (int64_t k = 0; k < w.k; ++k) out[k] = static_cast<int8_t>(from[k]) * scale;
        break;
      }
      case WeightFormat::kFp8Channel: {
        const float scale = static_cast<const float*>(w.scales)[row];
        for (int64_t k = 0; k < w.k; ++k) out[k] = e4m3_to_f32(from[k]) * scale;
        break;
      }
      case WeightFormat::kInt4Group: {
        const auto* scales = static_cast<const uint16_t*>(w.scales) + row * w.groups();
        const uint8_t* zeros = w.zeros == nullptr ? nullptr : w.zeros + row * w.zero_row_bytes();
        for (int64_t g = 0; g < w.groups(); ++g) {
          const float scale = f16_to_f32(scales[g]);
          const int zero = zeros == nullptr ? 8 : (zeros[g / 2] >> (4 * (g & 1))) & 15;
          const int64_t end = std::min(w.k, (g + 1) * w.group_size);
          for (int64_t k = g * w.group_size; k < end; ++k)
            out[k] = static_cast<float>(((from[k / 2] >> (4 * (k & 1))) & 15) - zero) * scale;
        }
        break;
      }
    }
  }
}

QuantizedTensor make_quantized(WeightFormat format, int64_t n, int64_t k, int64_t group_size,
                               bool symmetric, bool two_level) {
  QuantizedTensor result;
  result.format = format;
  result.n = n;
  result.k = k;
  if (format == WeightFormat::kInt4Group) {
    const int64_t groups = ceil_div(k, group_size);
    result.group_size = group_size;
    result.two_level = two_level;
    result.data = Tensor::zeros(DType::kU8, {n, ceil_div(k, 2)});
    result.scales = Tensor(DType::kF16, {n, groups});
    if (!symmetric) result.zeros = Tensor::zeros(DType::kU8, {n, ceil_div(groups, 2)});
  } else if (format == WeightFormat::kInt8Channel || format == WeightFormat::kFp8Channel) {
    result.data = Tensor(format == WeightFormat::kInt8Channel ? DType::kI8 : DType::kU8, {n, k});
    result.scales = Tensor(DType::kF32, {n});
  } else {
    throw Error(ErrorKind::kInvalidArgument, "{} is not a quantized weight format", name(format));
  }
  return result;
}

std::vector<ValueRange> clipped_ranges(const float* w, int64_t k, int64_t group_size,
                                       const float* clip) {
  std::vector<ValueRange> ranges;
  for (int64_t begin = 0; begin < k; begin += group_size) {
    auto [low, high] = value_range(w + begin, std::min(group_size, k - begin));
    if (clip != nullptr) {
      const float bound = clip[begin / group_size];
      low = std::max(low, -bound);
      high = std::min(high, bound);
    }
    ranges.push_back({low, high});
  }
  return ranges;
}

Int4Params int4_params(float min, float max, bool symmetric) {
  // Scales stay within what f16 holds; a group of zeros gets the smallest, and codes equal to its
  // zero point.
  constexpr float kSmallest = 0x1p-24f, kLargest = 65504.0f;
  const auto stored = [&](float scale) {
    return f16_to_f32(f32_to_f16(std::clamp(scale, kSmallest, kLargest)));
  };
  if (symmetric) return {stored(std::max(max, -min) / 7.5f), 8.0f};
  min = std::min(min, 0.0f);
  max = std::max(max, 0.0f);
  const float scale = stored((max - min) / 15.0f);
  return {scale, std::clamp(std::nearbyintf(-min / scale), 0.0f, 15.0f)};
}

namespace {

// Significant bits of a two-level step: with the 4 of a multiple they are the 11 of an f16.
constexpr int kStepBits = 7;
constexpr float kSmallestStep = 0x1p-24f, kLargestStep = 4352.0f;  // times 15: at most 65504

// The distance of possible steps near `step`.
float step_unit(float step) {
  int exponent = 0;
  std::frexp(step, &exponent);
  return std::ldexp(1.0f, std::max(exponent - kStepBits, -24));
}

}  // namespace

float two_level_step_above(float step) {
  step = std::clamp(step, kSmallestStep, kLargestStep);
  const float unit = step_unit(step);
  return std::ceil(step / unit) * unit;
}

float two_level_step_near(float step) {
  step = std::clamp(step, kSmallestStep, kLargestStep);
  const float unit = step_unit(step);
  return std::max(std::nearbyintf(step / unit) * unit, kSmallestStep);
}

void int4_row_params(std::span<const ValueRange> ranges, bool symmetric, bool two_level,
                     Int4Params* params) {
  float step = 0;
  for (size_t g = 0; g < ranges.size(); ++g) {
    params[g] = int4_params(ranges[g].low, ranges[g].high, symmetric);
    step = std::max(step, params[g].scale / static_cast<float>(most_multiple(params[g].zero)));
  }
  if (!two_level) return;
  step = two_level_step_above(step);
  for (size_t g = 0; g < ranges.size(); ++g) {
    auto& [scale, zero] = params[g];
    int multiple = std::max(1, static_cast<int>(std::nearbyintf(scale / step)));
    // A finer scale moves the zero point, which bounds the multiple.
    do {
      scale = static_cast<float>(multiple) * step;
      if (!symmetric)
        zero = std::clamp(std::nearbyintf(-std::min(ranges[g].low, 0.0f) / scale), 0.0f, 15.0f);
    } while (multiple-- > most_multiple(zero));
  }
}

float two_level_row(const WeightView& w, int64_t row, uint8_t* multiples) {
  const int64_t groups = w.groups();
  const auto* scales = static_cast<const uint16_t*>(w.scales) + row * groups;
  const uint8_t* zeros = w.zeros == nullptr ? nullptr : w.zeros + row * w.zero_row_bytes();
  const auto in_units = [&](int64_t g) -> int64_t {  // of 2⁻²⁴, the smallest f16; 0: not above 0
    const int exponent = scales[g] >> 10, fraction = scales[g] & 0x3ff;
    if (exponent == 0) return fraction;
    return exponent < 31 ? int64_t{0x400 + fraction} << (exponent - 1) : 0;
  };
  // In f64 a quotient of such integers is exact where it is one.
  const auto quotient = [](int64_t units, int64_t step) {
    return std::nearbyint(static_cast<double>(units) / static_cast<double>(step));
  };
  int64_t step = in_units(0);
  for (int64_t g = 1; g < groups; ++g) {
    const int64_t units = in_units(g);
    if (step == 0 ||
        quotient(units, step) * static_cast<double>(step) != static_cast<double>(units))
      step = std::gcd(step, units);
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int zero = zeros == nullptr ? 8 : (zeros[g / 2] >> (4 * (g & 1))) & 15;
    const int64_t multiple = step == 0 ? 0 : static_cast<int64_t>(quotient(in_units(g), step));
    if (multiple < 1 || multiple > most_multiple(static_cast<float>(zero)))
      throw Error(ErrorKind::kInvalidData,
                  "the scales of row {} are not two-level ones: that of group {} is {} times the "
                  "row's step with zero point {}; the weight is damaged: make the engine again",
                  row, g, multiple, zero);
    multiples[g] = static_cast<uint8_t>(multiple);
  }
  return static_cast<float>(step) * 0x1p-24f;
}

void divide_row(QuantizedTensor& weight, int64_t row, float by) {
  if (weight.format == WeightFormat::kInt8Channel || weight.format == WeightFormat::kFp8Channel) {
    weight.scales.data<float>()[row] /= by;
    return;
  }
  if (weight.format == WeightFormat::kBF16) {
    uint16_t* values = weight.data.data<uint16_t>() + row * weight.k;
    for (int64_t i = 0; i < weight.k; ++i) values[i] = f32_to_bf16(bf16_to_f32(values[i]) / by);
    return;
  }
  const int64_t groups = ceil_div(weight.k, weight.group_size);
  uint16_t* scales = weight.scales.data<uint16_t>() + row * groups;
  if (weight.two_level) {
    std::vector<uint8_t> multiples(groups);
    const float step =
        two_level_step_near(two_level_row(weight.view(), row, multiples.data()) / by);
    for (int64_t g = 0; g < groups; ++g) scales[g] = f32_to_f16(multiples[g] * step);
    return;
  }
  for (int64_t g = 0; g < groups; ++g)
    scales[g] = f32_to_f16(std::clamp(f16_to_f32(scales[g]) / by, 0x1p-24f, 65504.0f));
}

namespace {

void quantize_row_int4(const float* w, const float* clip, int64_t row, QuantizedTensor& out) {
  const bool symmetric = out.zeros.empty();
  const int64_t groups = ceil_div(out.k, out.group_size);
  uint8_t* codes = out.data.data<uint8_t>() + row * ceil_div(out.k, 2);
  uint16_t* scales = out.scales.data<uint16_t>() + row * groups;
  uint8_t* zeros = symmetric ? nullptr : out.zeros.data<uint8_t>() + row * ceil_div(groups, 2);
  std::vector<Int4Params> params(groups);
  int4_row_params(
      clipped_ranges(w, out.k, out.group_size, clip == nullptr ? nullptr : clip + row * groups),
      symmetric, out.two_level, params.data());
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * out.group_size, end = std::min(out.k, begin + out.group_size);
    const auto [scale, zero] = params[g];
    const float inverse = 1.0f / scale;
    scales[g] = f32_to_f16(scale);
    if (!symmetric) zeros[g / 2] |= static_cast<uint8_t>(static_cast<int>(zero) << (4 * (g & 1)));
    for (int64_t k = begin; k < end; ++k) {
      // Codes saturate at the clipped range's ends, so clamping the weights themselves would change
      // nothing.
      const float code = std::clamp(round_nearest(w[k] * inverse) + zero, 0.0f, 15.0f);
      codes[k / 2] |= static_cast<uint8_t>(static_cast<int>(code) << (4 * (k & 1)));
    }
  }
}

void quantize_row_int8(const float* w, int64_t row, QuantizedTensor& out) {
  const float scale = std::max(value_range(w, out.k).largest(), 1e-30f) / 127.0f,
              inverse = 1.0f / scale;
  out.scales.data<float>()[row] = scale;
  int8_t* codes = out.data.data<int8_t>() + row * out.k;
  for (int64_t k = 0; k < out.k; ++k)
    codes[k] = static_cast<int8_t>(std::clamp(round_nearest(w[k] * inverse), -127.0f, 127.0f));
}

void quantize_row_fp8(const float* w, int64_t row, QuantizedTensor& out) {
  const float scale = std::max(value_range(w, out.k).largest(), 1e-30f) / kE4m3Largest,
              inverse = 1.0f / scale;
  out.scales.data<float>()[row] = scale;
  uint8_t* codes = out.data.data<uint8_t>() + row * out.k;
  for (int64_t k = 0; k < out.k; ++k) codes[k] = f32_to_e4m3(w[k] * inverse);
}

}  // namespace

void quantize_rows_rtn(const float* w, int64_t row_begin, int64_t row_end, const float* clip,
                       QuantizedTensor& out) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* from = w + (row - row_begin) * out.k;
    if (out.format == WeightFormat::kInt4Group)
      quantize_row_int4(from, clip, row, out);
    else if (out.format == WeightFormat::kInt8Channel)
      quantize_row_int8(from, row, out);
    else
      quantize_row_fp8(from, row, out);
  }
}

}  // namespace whit
