#include "api/policy.h"

#include <array>

#include "quantize/algorithm.h"

namespace whit {
namespace {

constexpr std::array kModes = {QuantMode::NONE,        QuantMode::RTN,  QuantMode::AWQ,
                               QuantMode::SMOOTHQUANT, QuantMode::GPTQ, QuantMode::AWQ_GPTQ,
                               QuantMode::AUTO};

struct Combination {
  std::string_view weights, activations, scheme;
};
// "float" stands for every floating-point name: kernels compute in f32 from weights as they are
// stored.
constexpr std::array<Combination, 7> kCombinations = {{{"int4", "float", "w4a16"},
                                                       {"int4", "int8", "w4a8"},
                                                       {"int8", "int8", "w8a8"},
                                                       {"int8", "float", "w8a16"},
                                                       {"fp8", "fp8", "fp8"},
                                                       {"int4", "fp8", "w4afp8"},
                                                       {"float", "float", "bf16"}}};
constexpr std::array<std::string_view, 8> kFloatNames = {"float", "float32", "fp32",     "float16",
                                                         "fp16",  "half",    "bfloat16", "bf16"};

std::string_view dtype_or(const std::string& name, std::string_view fallback) {
  if (name.empty()) return fallback;
  for (const std::string_view known : kFloatNames)
    if (name == known) return "float";
  return name;
}

Combination wanted(QuantMode mode, const QuantPolicy& policy) {
  const bool smooth = mode == QuantMode::SMOOTHQUANT;
  std::string_view weights = "float";
  if (mode == QuantMode::RTN || smooth)
    weights = "int8";
  else if (mode != QuantMode::NONE)
    weights = "int4";
  weights = dtype_or(policy.weight_dtype, weights);
  const std::string_view activations = weights == "fp8" ? "fp8" : smooth ? "int8" : "float";
  return {weights, dtype_or(policy.activation_dtype, activations), ""};
}

bool possible(QuantMode mode, const Combination& combination) {
  if (mode == QuantMode::NONE) return combination.scheme == "bf16";
  const QuantScheme scheme = QuantScheme::preset(combination.scheme);
  return scheme.weights && find_algorithm(mode_name(mode)).refuses(scheme).empty();
}

std::string possibilities() {
  std::string text;
  for (const QuantMode mode : kModes) {
    if (mode == QuantMode::NONE) continue;
    text += fmt::format("{}{}:", text.empty() ? "" : "; ", mode_name(mode));
    for (const Combination& each : kCombinations)
      if (possible(mode, each)) text += fmt::format(" {} x {},", each.weights, each.activations);
    text.pop_back();
  }
  return text + "; none: float x float";
}

}  // namespace

std::span<const QuantMode> quant_modes() { return kModes; }

std::string_view mode_name(QuantMode mode) {
  switch (mode) {
    case QuantMode::NONE:
      return "none";
    case QuantMode::RTN:
      return "rtn";
    case QuantMode::AWQ:
      return "awq";
    case QuantMode::SMOOTHQUANT:
      return "smoothquant";
    case QuantMode::GPTQ:
      return "gptq";
    case QuantMode::AWQ_GPTQ:
      return "awq-gptq";
    case QuantMode::AUTO:
      return "auto";
  }
  throw Error(ErrorKind::kInvalidArgument, "QuantMode {} is not a mode", static_cast<int>(mode));
}

QuantScheme scheme_of(QuantMode mode, const QuantPolicy& policy, int64_t group_size, bool symmetric,
                      bool two_level) {
  const std::string_view name = mode_name(mode);
  const Combination want = wanted(mode, policy);
  for (const Combination& each : kCombinations)
    if (each.weights == want.weights && each.activations == want.activations &&
        possible(mode, each))
      return QuantScheme::preset(each.scheme, group_size, symmetric, two_level);
  throw Error(ErrorKind::kUnsupported,
              "mode {} with {} weights and {} activations is not possible; possible (weights x "
              "activations) are {}",
              name, want.weights, want.activations, possibilities());
}

void check_engine_agrees(std::string_view engine_mode, const QuantScheme& engine_scheme,
                         QuantMode mode, const QuantPolicy& policy, std::string_view where) {
  if (mode == QuantMode::NONE && policy.weight_dtype.empty() && policy.activation_dtype.empty())
    return;
  const std::string asked = scheme_of(mode, policy, 128, false).name();
  if (engine_mode != mode_name(mode) || engine_scheme.name() != asked)
    throw Error(
        ErrorKind::kInvalidArgument,
        "{} is an engine made with mode {} and scheme {}, but mode {} and scheme {} were asked "
        "for: ask for "
        "nothing (QuantMode::NONE) to run it as it is, or give the model that it was made from",
        where, engine_mode, engine_scheme.name(), mode_name(mode), asked);
}

}  // namespace whit
