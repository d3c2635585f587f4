#include "quant/scheme.h"

#include <algorithm>
#include <array>

#include "quant/weight.h"

namespace whit {
namespace {

constexpr std::array<std::string_view, 4> kStrategyNames = {"tensor", "channel", "group", "token"};
constexpr std::array<std::string_view, 2> kTypeNames = {"int", "float"};
constexpr std::array<std::string_view, 7> kSchemeNames = {"w4a16", "w4a8",   "w8a8", "w8a16",
                                                          "fp8",   "w4afp8", "bf16"};

bool has_int4_weights(std::string_view name) { return name.starts_with("w4"); }

QuantArgs per_token(NumberType type) {
  return {.num_bits = 8, .type = type, .strategy = QuantStrategy::kToken, .dynamic = true};
}

Json args_to_json(const std::optional<QuantArgs>& args) {
  if (!args) return nullptr;
  Json json = {{"num_bits", args->num_bits},
               {"type", kTypeNames[static_cast<int>(args->type)]},
               {"symmetric", args->symmetric},
               {"strategy", kStrategyNames[static_cast<int>(args->strategy)]},
               {"dynamic", args->dynamic}};
  if (args->strategy == QuantStrategy::kGroup) json["group_size"] = args->group_size;
  if (args->two_level) json["two_level"] = true;
  return json;
}

std::optional<QuantArgs> args_from_json(const Json& json, std::string_view key,
                                        std::string_view where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::nullopt;
  QuantArgs args;
  const int64_t num_bits = json_get<int64_t>(*found, "num_bits", where);
  if (num_bits < 1 || num_bits > 32)
    throw Error(ErrorKind::kInvalidData, "{}: num_bits is {}", where, num_bits);
  args.num_bits = static_cast<int>(num_bits);
  const std::string type = json_get_or<std::string>(*found, "type", "int", where);
  const auto* known_type = std::find(kTypeNames.begin(), kTypeNames.end(), type);
  if (known_type == kTypeNames.end())
    throw Error(ErrorKind::kUnsupported,
                "{}: numbers of type \"{}\" have no kernels; \"int\" and \"float\" have", where,
                type);
  args.type = static_cast<NumberType>(known_type - kTypeNames.begin());
  args.symmetric = json_get_or<bool>(*found, "symmetric", true, where);
  args.dynamic = json_get_or<bool>(*found, "dynamic", false, where);
  args.group_size = json_get_or<int64_t>(*found, "group_size", 0, where);
  args.two_level = json_get_or<bool>(*found, "two_level", false, where);
  const std::string strategy = json_get<std::string>(*found, "strategy", where);
  for (size_t i = 0; i < kStrategyNames.size(); ++i)
    if (strategy == kStrategyNames[i]) {
      args.strategy = static_cast<QuantStrategy>(i);
      return args;
    }
  throw Error(ErrorKind::kInvalidData, "{}: unknown quantization strategy \"{}\"", where, strategy);
}

}  // namespace

std::vector<std::string_view> scheme_names() { return {kSchemeNames.begin(), kSchemeNames.end()}; }

QuantScheme QuantScheme::preset(std::string_view name, int64_t group_size, bool symmetric,
                                bool two_level) {
  QuantScheme scheme;
  if (two_level && name != "w4a8")
    throw Error(ErrorKind::kUnsupported,
                "two-level scales are for int4 weights with int8 activations, whose sums they keep "
                "in integers: scheme w4a8, not {}",
                name);
  if (name == "bf16") return scheme;
  if (has_int4_weights(name) && std::ranges::find(kSchemeNames, name) != kSchemeNames.end()) {
    if (group_size != 32 && group_size != 64 && group_size != 128)
      throw Error(ErrorKind::kUnsupported, "group size {} is not supported; choose 32, 64 or 128",
                  group_size);
    scheme.weights = QuantArgs{.num_bits = 4,
                               .symmetric = symmetric,
                               .strategy = QuantStrategy::kGroup,
                               .group_size = group_size,
                               .two_level = two_level};
  } else if (name == "w8a8" || name == "w8a16") {
    scheme.weights = QuantArgs{.num_bits = 8, .strategy = QuantStrategy::kChannel};
  } else if (name == "fp8") {
    scheme.weights =
        QuantArgs{.num_bits = 8, .type = NumberType::kFloat, .strategy = QuantStrategy::kChannel};
  } else {
    throw Error(ErrorKind::kInvalidArgument, "unknown scheme \"{}\"; choose one of {}", name,
                fmt::join(kSchemeNames, ", "));
  }
  if (name == "w4a8" || name == "w8a8") scheme.input_activations = per_token(NumberType::kInt);
  if (name == "fp8" || name == "w4afp8") scheme.input_activations = per_token(NumberType::kFloat);
  return scheme;
}

std::string QuantScheme::name() const {
  if (!weights) return "bf16";
  if (weights->type == NumberType::kFloat) return "fp8";
  if (input_activations && input_activations->type == NumberType::kFloat)
    return fmt::format("w{}afp8", weights->num_bits);
  return fmt::format("w{}a{}", weights->num_bits,
                     input_activations ? input_activations->num_bits : 16);
}

std::string QuantScheme::full_name() const {
  std::string full = name();
  if (weights && weights->strategy == QuantStrategy::kGroup)
    full += fmt::format("-g{}{}{}", weights->group_size, weights->symmetric ? "-symmetric" : "",
                        weights->two_level ? "-two-level" : "");
  if (static_activations()) full += "-static";
  return full;
}

WeightFormat weight_format(const QuantScheme& scheme) {
  if (!scheme.weights) return WeightFormat::kBF16;
  if (scheme.weights->num_bits == 4) return WeightFormat::kInt4Group;
  return scheme.weights->type == NumberType::kFloat ? WeightFormat::kFp8Channel
                                                    : WeightFormat::kInt8Channel;
}

Json to_json(const QuantScheme& scheme) {
  return {{"weights", args_to_json(scheme.weights)},
          {"input_activations", args_to_json(scheme.input_activations)}};
}

QuantScheme scheme_from_json(const Json& json, std::string_view where) {
  if (!json.is_object())
    throw Error(ErrorKind::kInvalidData, "{}: a scheme must be an object", where);
  QuantScheme scheme{args_from_json(json, "weights", where),
                     args_from_json(json, "input_activations", where)};
  // Only what a preset can express has kernels: anything else is refused here, by name, and not at
  // run time.
  for (const std::string_view name : kSchemeNames) {
    const int64_t group_size = scheme.weights ? scheme.weights->group_size : 0;
    if (has_int4_weights(name) && group_size != 32 && group_size != 64 && group_size != 128)
      continue;
    QuantScheme known =
        QuantScheme::preset(name, group_size, scheme.weights && scheme.weights->symmetric,
                            scheme.weights && scheme.weights->two_level && name == "w4a8");
    if (known.input_activations && scheme.static_activations()) {
      known.input_activations->dynamic = false;
      known.input_activations->strategy = QuantStrategy::kTensor;
    }
    if (known == scheme) return scheme;
  }
  throw Error(ErrorKind::kUnsupported, "{}: no kernels for the quantization scheme {}", where,
              json.dump());
}

}  // namespace whit
