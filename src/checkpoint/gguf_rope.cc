// Llama 3's scaling is stored as the tensor rope_freqs.weight [Dh/2], the divisor of each inverse
// frequency:
//   λᵢ = 2π θ^(2i/Dh),  s = (C/λᵢ − low) / (high − low),  fᵢ = 1 / ((1 − s)/factor + s) with s
//   clamped to [0, 1]
// where C is original_max_position_embeddings (transformers, modeling_rope_utils, "llama3").
// Scaling C, low and high together changes nothing, so the inverse needs a convention: low = 1, as
// every published config has. C and high then follow from two frequencies strictly between the
// bands, and the result counts only if it reproduces every fᵢ.
#include "checkpoint/gguf_rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "base/error.h"
#include "checkpoint/dequantize.h"

namespace whit {
namespace {

struct Llama3Scaling {
  double factor, low, high, context;
};

std::vector<double> inverse_factors(const Llama3Scaling& scaling, int64_t count, double theta) {
  std::vector<double> result(count);
  for (int64_t i = 0; i < count; ++i) {
    const double wavelength =
        2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / static_cast<double>(count));
    const double s = std::clamp(
        (scaling.context / wavelength - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0);
    result[i] = (1 - s) / scaling.factor + s;
  }
  return result;
}

// 1/f is compared: it is linear in C/λ, which the converters compute in f32 from an f32 power, each
// step within a few units of 2^-24 of values up to `high`.
bool reproduces(const Llama3Scaling& scaling, const std::vector<double>& stored, double theta) {
  const double tolerance =
      16 * 0x1p-24 * std::max(1.0, scaling.high / (scaling.high - scaling.low));
  const auto wanted = inverse_factors(scaling, static_cast<int64_t>(stored.size()), theta);
  for (size_t i = 0; i < stored.size(); ++i)
    if (!(std::fabs(1 / stored[i] - wanted[i]) <= tolerance)) return false;
  return true;
}

std::optional<Llama3Scaling> recover(const std::vector<double>& stored, double theta) {
  const double factor = stored.back();
  if (!(factor > 1)) return std::nullopt;
  const auto count = static_cast<int64_t>(stored.size());
  int64_t first = -1, last = -1;  // frequencies strictly between the bands
  for (int64_t i = 0; i < count; ++i)
    if (stored[i] > 1 && stored[i] < factor) {
      if (first < 0) first = i;
      last = i;
    }
  Llama3Scaling result{factor, 1, 4, 8192};
  if (reproduces(result, stored, theta)) return result;
  if (first < 0 || first == last) return std::nullopt;
  const auto smooth = [&](int64_t i) { return (1 / stored[i] - 1 / factor) / (1 - 1 / factor); };
  const auto frequency = [&](int64_t i) {
    return std::pow(theta, -static_cast<double>(i) / static_cast<double>(count)) /
           (2 * std::numbers::pi);
  };
  // s = C/(high − 1) · (1/λ) − 1/(high − 1)
  const double slope = (smooth(first) - smooth(last)) / (frequency(first) - frequency(last));
  const double intercept = smooth(first) - slope * frequency(first);
  result.high = std::round((1 - 1 / intercept) * 16) / 16;
  result.context = std::round(slope * (result.high - 1));
  if (!(result.high > 1) || !(result.context >= 1) || !reproduces(result, stored, theta))
    return std::nullopt;
  return result;
}

Json from_frequencies(const GgufFile& file, const StoredTensor& tensor, int64_t head_dim,
                      double theta) {
  if (tensor.shape != Shape{head_dim / 2} || !is_readable_as_f32(tensor.type))
    throw Error(ErrorKind::kInvalidData, "{}: tensor {} has shape {}, expected [{}]", file.where(),
                tensor.name, to_string(tensor.shape), head_dim / 2);
  std::vector<float> values(head_dim / 2);
  dequantize(tensor.type, tensor.data.data(), head_dim / 2, values.data());
  if (std::all_of(values.begin(), values.end(), [](float value) { return value == 1.0f; }))
    return nullptr;
  const auto scaling = recover({values.begin(), values.end()}, theta);
  if (!scaling)
    throw Error(ErrorKind::kUnsupported,
                "{}: the factors in {} are not those of Llama 3's RoPE scaling, and config.json "
                "has no other name for "
                "them; use the original Hugging Face model",
                file.where(), tensor.name);
  Json result;
  result["rope_type"] = "llama3";
  result["factor"] = scaling->factor;
  result["low_freq_factor"] = scaling->low;
  result["high_freq_factor"] = scaling->high;
  result["original_max_position_embeddings"] = static_cast<int64_t>(scaling->context);
  return result;
}

}  // namespace

Json rope_scaling_from_gguf(const GgufFile& file, std::string_view architecture, int64_t head_dim,
                            double theta) {
  const std::string prefix = fmt::format("{}.rope.", architecture);
  const std::string_view type = file.string(prefix + "scaling.type").value_or("linear");
  if (type != "none" && type != "linear" && type != "yarn")
    throw Error(ErrorKind::kUnsupported, "{}: {}scaling.type \"{}\" is not supported", file.where(),
                prefix, type);
  const auto positive = [&](const char* name) {
    const auto value = file.number(prefix + name);
    if (value && !(*value > 0 && std::isfinite(*value)))
      throw Error(ErrorKind::kInvalidData, "{}: {}{} = {} is out of range", file.where(), prefix,
                  name, *value);
    return value.value_or(1);
  };
  // Older files call a linear factor scale_linear.
  const double factor =
      file.has(prefix + "scaling.factor") ? positive("scaling.factor") : positive("scale_linear");
  const bool scaled = type != "none" && factor != 1;
  if (const StoredTensor* frequencies = file.find("rope_freqs.weight")) {
    const Json result = from_frequencies(file, *frequencies, head_dim, theta);
    if (!result.is_null() && scaled)
      throw Error(ErrorKind::kUnsupported,
                  "{}: both {} and {}scaling.factor scale RoPE; config.json cannot say that",
                  file.where(), frequencies->name, prefix);
    if (!result.is_null()) return result;
  }
  if (!scaled) return nullptr;
  if (positive("scaling.attn_factor") != 1)
    throw Error(ErrorKind::kUnsupported, "{}: {}scaling.attn_factor other than 1 is not supported",
                file.where(), prefix);
  Json result;
  result["rope_type"] = std::string(type);
  result["factor"] = factor;
  if (const auto context = file.integer(prefix + "scaling.original_context_length"))
    result["original_max_position_embeddings"] = *context;
  return result;
}

}  // namespace whit
