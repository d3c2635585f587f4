// The numerics of a linear: which dtypes and granularities its weights and input activations have.
// Field names follow compressed-tensors' QuantizationArgs / QuantizationScheme, in JSON and here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace whit {

enum class WeightFormat : uint8_t;

enum class QuantStrategy { kTensor, kChannel, kGroup, kToken };
enum class NumberType { kInt, kFloat };  // kFloat: of 8 bits, e4m3 (tensor/e4m3.h)

struct QuantArgs {
  int num_bits = 8;
  NumberType type = NumberType::kInt;
  bool symmetric = true;
  QuantStrategy strategy = QuantStrategy::kChannel;
  int64_t group_size =
      0;  // kGroup only: weights per scale along K; the last group of a row may be short
  bool two_level = false;  // kGroup only: scales are small multiples of one step a row
                           // (quant/weight.h); no field of compressed-tensors
  bool dynamic = false;    // activations only: scale computed at run time

  bool operator==(const QuantArgs&) const = default;

  // Of symmetric codes of 8 bits.
  float largest_code() const { return type == NumberType::kFloat ? 448.0f : 127.0f; }
};

struct QuantScheme {
  std::optional<QuantArgs> weights;            // absent: kept in floating point
  std::optional<QuantArgs> input_activations;  // absent: floating point

  bool operator==(const QuantScheme&) const = default;

  bool quantizes_activations() const { return input_activations.has_value(); }
  bool static_activations() const { return input_activations && !input_activations->dynamic; }

  // "w4a16", "w4a8", "w8a8", "w8a16" (integers), "fp8" (e4m3 × e4m3), "w4afp8" (int4 × e4m3) or
  // "bf16" (nothing quantized). group_size and symmetric matter to 4-bit weights only. Throws
  // kInvalidArgument listing the possible names, or kUnsupported for a group size other than 32,
  // 64, 128, or two_level and another scheme than "w4a8".
  static QuantScheme preset(std::string_view name, int64_t group_size = 128, bool symmetric = false,
                            bool two_level = false);
  std::string name() const;
  // … and what it leaves open: "w4a16-g64", "w4a8-g128-symmetric", "w4a8-g128-two-level",
  // "w8a8-static".
  std::string full_name() const;
};

std::vector<std::string_view> scheme_names();

// How weights of a scheme are stored: kBF16 where they are not quantized.
WeightFormat weight_format(const QuantScheme& scheme);

Json to_json(const QuantScheme& scheme);
QuantScheme scheme_from_json(const Json& json, std::string_view where);

}  // namespace whit
