// compressed-tensors, as of 0.18 (its README and packing code): int4 weights beside floating-point
// activations, e4m3 ones too, as "pack-quantized", everything with int8 codes or int8 activations
// as "int-quantized" and e4m3 weights as "float-quantized", one code a byte: what its tools take
// for these schemes.
//   pack-quantized  weight_packed I32 [N, K/8], least significant code first, code = value + 8
//                   weight_zero_point I32 [ceil(N/8), G], packed along N the same way
//   int-quantized   weight I8 [N, K];  weight_zero_point I8 [N, G]
//   float-quantized weight F8_E4M3 [N, K]
//   all             weight_scale [N, G] or [N, 1] in the model's type;  input_scale [1], static
#include <algorithm>
#include <cstring>
#include <map>

#include "export/contents.h"

namespace whit {
namespace {

constexpr std::string_view kName = "compressed-tensors";

int zero_point(const WeightView& weight, int64_t row, int64_t g) {
  return (weight.zeros[row * weight.zero_row_bytes() + g / 2] >> (4 * (g & 1))) & 15;
}

QuantScheme scheme_of(const LinearWeight& weight) {
  const bool int8 = weight.activation == cpu::Activation::kInt8;
  const bool fp8 = weight.activation == cpu::Activation::kFp8;
  QuantScheme scheme =
      weight.view.format == WeightFormat::kInt4Group
          ? QuantScheme::preset(int8  ? "w4a8"
                                : fp8 ? "w4afp8"
                                      : "w4a16",
                                weight.view.group_size, weight.view.zeros == nullptr)
      : weight.view.format == WeightFormat::kFp8Channel
          ? QuantScheme::preset("fp8")
          : QuantScheme::preset(int8 ? "w8a8" : "w8a16");
  if (weight.static_scale > 0) {
    scheme.input_activations->dynamic = false;
    scheme.input_activations->strategy = QuantStrategy::kTensor;
  }
  return scheme;
}

bool is_packed(const QuantScheme& scheme) {
  return scheme.weights->num_bits == 4 && activation_of(scheme) != cpu::Activation::kInt8;
}

std::string_view format_of(const QuantScheme& scheme) {
  if (is_packed(scheme)) return "pack-quantized";
  return scheme.weights->type == NumberType::kFloat ? "float-quantized" : "int-quantized";
}

using Lazy = std::shared_ptr<LazyWeight>;

HfContents::Weight bytes(const std::string& name, StorageType type, Shape shape,
                         std::function<void(int64_t, int64_t, uint8_t*)> read) {
  return {.name = name, .shape = std::move(shape), .read_bytes = std::move(read), .type = type};
}

void add_codes(HfContents& contents, const std::string& module, const Lazy& lazy, bool packed) {
  const WeightView view = lazy->get().view;
  if (packed) {
    contents.weights.push_back(bytes(
        module + ".weight_packed", StorageType::kI32, {view.n, view.k / 8},
        [lazy](int64_t begin, int64_t end, uint8_t* out) {
          const WeightView& from = lazy->get().view;
          std::memcpy(out, static_cast<const uint8_t*>(from.data) + begin * from.data_row_bytes(),
                      (end - begin) * from.data_row_bytes());
        }));
    contents.weights.push_back(bytes(module + ".weight_shape", StorageType::kI64, {2},
                                     [n = view.n, k = view.k](int64_t, int64_t, uint8_t* out) {
                                       const int64_t shape[] = {n, k};
                                       std::memcpy(out, shape, sizeof(shape));
                                     }));
    return;
  }
  contents.weights.push_back(
      bytes(module + ".weight",
            view.format == WeightFormat::kFp8Channel ? StorageType::kF8E4M3 : StorageType::kI8,
            {view.n, view.k}, [lazy](int64_t begin, int64_t end, uint8_t* out) {
              const WeightView& from = lazy->get().view;
              for (int64_t row = begin; row < end; ++row, out += from.k) {
                const uint8_t* codes =
                    static_cast<const uint8_t*>(from.data) + row * from.data_row_bytes();
                if (from.format != WeightFormat::kInt4Group) {
                  std::memcpy(out, codes, from.k);
                  continue;
                }
                for (int64_t k = 0; k < from.k; ++k)
                  out[k] = static_cast<uint8_t>(((codes[k / 2] >> (4 * (k & 1))) & 15) - 8);
              }
            }));
}

void add_scales(HfContents& contents, const std::string& module, const Lazy& lazy) {
  const WeightView view = lazy->get().view;
  const int64_t groups = std::max<int64_t>(1, view.groups());
  contents.weights.push_back({.name = module + ".weight_scale",
                              .shape = {view.n, groups},
                              .read_rows = [lazy, groups](int64_t begin, int64_t end, float* out) {
                                const WeightView& from = lazy->get().view;
                                for (int64_t i = begin * groups; i < end * groups; ++i)
                                  *out++ = from.format != WeightFormat::kInt4Group
                                               ? static_cast<const float*>(from.scales)[i]
                                               : f16_to_f32(
                                                     static_cast<const uint16_t*>(from.scales)[i]);
                              }});
}

void add_zeros(HfContents& contents, const std::string& module, const Lazy& lazy, bool packed) {
  const WeightView view = lazy->get().view;
  if (view.zeros == nullptr) return;
  const int64_t groups = view.groups();
  if (packed)
    contents.weights.push_back(
        bytes(module + ".weight_zero_point", StorageType::kI32, {ceil_div(view.n, 8), groups},
              [lazy, groups](int64_t begin, int64_t end, uint8_t* out) {
                const WeightView& from = lazy->get().view;
                for (int64_t r = begin; r < end; ++r)
                  for (int64_t g = 0; g < groups; ++g, out += 4) {
                    uint32_t word = 0;
                    for (int64_t row = 8 * r; row < std::min(8 * r + 8, from.n); ++row)
                      word |= static_cast<uint32_t>(zero_point(from, row, g)) << (4 * (row % 8));
                    std::memcpy(out, &word, 4);
                  }
              }));
  else
    contents.weights.push_back(
        bytes(module + ".weight_zero_point", StorageType::kI8, {view.n, groups},
              [lazy, groups](int64_t begin, int64_t end, uint8_t* out) {
                for (int64_t row = begin; row < end; ++row)
                  for (int64_t g = 0; g < groups; ++g)
                    *out++ = static_cast<uint8_t>(zero_point(lazy->get().view, row, g) - 8);
              }));
}

// A scheme with the modules that have it; those of the commonest one are called by their class.
Json config_group(const QuantScheme& scheme, const Json& targets) {
  Json group = to_json(scheme);
  group["targets"] = targets;
  group["weights"]["observer"] = "minmax";
  group["output_activations"] = nullptr;
  group["format"] = format_of(scheme);
  return group;
}

}  // namespace

HfContents compressed_tensors_contents(const Model& model) {
  std::map<std::string, std::pair<QuantScheme, Json>> modules;  // by the scheme's full name
  Json ignored = Json::array({"lm_head"});
  HfContents contents =
      export_contents(model, [&](HfContents& to, const Node& node, const Lazy& lazy) {
        const LinearWeight& weight = lazy->get();
        if (weight.view.format != WeightFormat::kInt4Group &&
            weight.view.format != WeightFormat::kInt8Channel &&
            weight.view.format != WeightFormat::kFp8Channel) {
          ignored.push_back(node.name);
          return false;
        }
        if (!weight.salient_channels.empty())
          throw Error(ErrorKind::kUnsupported,
                      "{} has a second weight for its salient channels, which {} cannot express; "
                      "quantize without --salient",
                      node.name, kName);
        if (weight.view.format == WeightFormat::kInt4Group)
          check_whole_groups(node, weight.view, kName);
        const QuantScheme scheme = scheme_of(weight);
        auto& entry = modules[scheme.full_name()];
        entry.first = scheme;
        entry.second.push_back(node.name);
        const bool packed = is_packed(scheme);
        add_codes(to, node.name, lazy, packed);
        add_scales(to, node.name, lazy);
        add_zeros(to, node.name, lazy, packed);
        if (weight.static_scale > 0)
          to.weights.push_back({.name = node.name + ".input_scale",
                                .shape = {1},
                                .read_rows = [scale = weight.static_scale](
                                                 int64_t, int64_t, float* out) { *out = scale; }});
        return true;
      });
  if (modules.empty())
    throw Error(ErrorKind::kUnsupported,
                "{}: no linear of a layer is quantized; leave --format out", model.description());
  Json groups = Json::object();
  for (const auto& [name, entry] : modules)
    groups[fmt::format("group_{}", groups.size())] =
        config_group(entry.first, modules.size() == 1 ? Json::array({"Linear"}) : entry.second);
  const std::string_view first = format_of(modules.begin()->second.first);
  const bool same = std::all_of(modules.begin(), modules.end(), [&](const auto& entry) {
    return format_of(entry.second.first) == first;
  });
  const std::string_view format = same ? first : "mixed-precision";
  contents.config["quantization_config"] = {{"quant_method", kName},
                                            {"format", format},
                                            {"quantization_status", "compressed"},
                                            {"config_groups", groups},
                                            {"ignore", ignored},
                                            {"kv_cache_scheme", nullptr},
                                            {"global_compression_ratio", nullptr}};
  return contents;
}

}  // namespace whit
