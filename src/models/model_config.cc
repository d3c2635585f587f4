#include "models/model_config.h"

#include <fmt/ranges.h>

#include "base/file.h"
#include "models/table.h"

namespace whit {
namespace {

// Bounds far above any published model: they keep the arithmetic on sizes away from overflow.
constexpr int64_t kMaxWidth = 1 << 20, kMaxVocab = 1 << 24, kMaxLayers = 4096,
                  kMaxPositions = int64_t{1} << 28;

int64_t get_size(const Json& json, std::string_view key, int64_t limit, std::string_view where) {
  const int64_t value = json_get<int64_t>(json, key, where);
  if (value < 1 || value > limit)
    throw Error(ErrorKind::kInvalidData, "{}: \"{}\" is {}, expected 1 … {}", where, key, value,
                limit);
  return value;
}

int64_t get_size_or(const Json& json, std::string_view key, int64_t fallback, int64_t limit,
                    std::string_view where) {
  const auto found = json.find(key);
  return found == json.end() || found->is_null() ? fallback : get_size(json, key, limit, where);
}

// transformers 4 writes rope_theta and rope_scaling, transformers 5 one rope_parameters object.
RopeConfig read_rope(const Json& json, std::string_view where) {
  RopeConfig rope;
  const auto merged = json.find("rope_parameters");
  const bool has_merged = merged != json.end() && merged->is_object();
  rope.theta = json_get_or<double>(has_merged && merged->contains("rope_theta") ? *merged : json,
                                   "rope_theta", 10000.0, where);
  if (!(rope.theta > 1.0 && rope.theta < 1e12))
    throw Error(ErrorKind::kInvalidData, "{}: \"rope_theta\" is {}, expected more than 1", where,
                rope.theta);

  const auto scaling = has_merged ? merged : json.find("rope_scaling");
  if (scaling == json.end() || scaling->is_null()) return rope;
  std::string type = json_get_or<std::string>(*scaling, "rope_type", "", where);
  if (type.empty()) type = json_get_or<std::string>(*scaling, "type", "default", where);
  if (type == "default") return rope;
  if (type != "linear" && type != "llama3")
    throw Error(ErrorKind::kUnsupported,
                "{}: RoPE scaling \"{}\" is not supported (default, linear, llama3 are)", where,
                type);
  rope.factor = json_get<double>(*scaling, "factor", where);
  if (!(rope.factor >= 1.0 && rope.factor < 1e6))
    throw Error(ErrorKind::kInvalidData, "{}: RoPE scaling \"factor\" is {}, expected at least 1",
                where, rope.factor);
  rope.scaling = type == "linear" ? RopeScaling::kLinear : RopeScaling::kLlama3;
  if (rope.scaling == RopeScaling::kLlama3) {
    rope.low_freq_factor = json_get<double>(*scaling, "low_freq_factor", where);
    rope.high_freq_factor = json_get<double>(*scaling, "high_freq_factor", where);
    rope.original_max_position_embeddings =
        get_size(*scaling, "original_max_position_embeddings", kMaxPositions, where);
    if (!(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor))
      throw Error(ErrorKind::kInvalidData,
                  "{}: RoPE \"high_freq_factor\" must exceed \"low_freq_factor\" > 0", where);
  }
  return rope;
}

std::vector<int64_t> read_eos(const Json& json, std::string_view where) {
  const auto found = json.find("eos_token_id");
  if (found == json.end() || found->is_null()) return {};
  if (!found->is_array()) return {json_get<int64_t>(json, "eos_token_id", where)};
  std::vector<int64_t> ids;
  for (const Json& id : *found)
    if (id.is_number_integer()) ids.push_back(id.get<int64_t>());
  return ids;
}

}  // namespace

ModelConfig ModelConfig::from_json_file(const std::filesystem::path& path) {
  return from_json(parse_json(read_file(path, 16 << 20), path.string()), path.string());
}

ModelConfig ModelConfig::from_json(const Json& json, std::string_view where) {
  ModelConfig config;
  config.raw = json;
  const auto architectures = json.is_object() ? json.find("architectures") : json.end();
  if (architectures == json.end() || !architectures->is_array() || architectures->empty() ||
      !architectures->front().is_string())
    throw Error(ErrorKind::kInvalidData, "{}: \"architectures\" must name the model class", where);
  config.architecture = architectures->front().get<std::string>();
  const Architecture* architecture = find_architecture(config.architecture);
  if (architecture == nullptr)
    throw Error(ErrorKind::kUnsupported, "{}: architecture {} is not supported; supported are {}",
                where, config.architecture, fmt::join(supported_architectures(), ", "));

  config.model_type = json_get_or<std::string>(json, "model_type", "", where);
  config.hidden_size = get_size(json, "hidden_size", kMaxWidth, where);
  config.intermediate_size = get_size(json, "intermediate_size", kMaxWidth, where);
  config.num_hidden_layers = get_size(json, "num_hidden_layers", kMaxLayers, where);
  config.num_attention_heads = get_size(json, "num_attention_heads", 4096, where);
  config.num_key_value_heads =
      get_size_or(json, "num_key_value_heads", config.num_attention_heads, 4096, where);
  config.vocab_size = get_size(json, "vocab_size", kMaxVocab, where);
  config.max_position_embeddings =
      get_size_or(json, "max_position_embeddings", 2048, kMaxPositions, where);
  config.head_dim = get_size_or(
      json, "head_dim", std::max<int64_t>(1, config.hidden_size / config.num_attention_heads), 1024,
      where);
  if (config.num_attention_heads % config.num_key_value_heads != 0)
    throw Error(ErrorKind::kInvalidData,
                "{}: {} attention heads cannot share {} key/value heads evenly", where,
                config.num_attention_heads, config.num_key_value_heads);
  if (config.head_dim % 2 != 0)
    throw Error(ErrorKind::kInvalidData, "{}: \"head_dim\" {} is odd, RoPE needs pairs", where,
                config.head_dim);
  const std::string activation = json_get_or<std::string>(json, "hidden_act", "silu", where);
  if (activation != "silu" && activation != "swish")
    throw Error(ErrorKind::kUnsupported, "{}: \"hidden_act\" {} is not supported (silu is)", where,
                activation);
  config.rms_norm_eps = json_get_or<double>(json, "rms_norm_eps", 1e-6, where);
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1))
    throw Error(ErrorKind::kInvalidData, "{}: \"rms_norm_eps\" is {}", where, config.rms_norm_eps);
  config.rope = read_rope(json, where);
  config.tie_word_embeddings =
      json_get_or<bool>(json, "tie_word_embeddings", architecture->tied_by_default, where);
  config.torch_dtype = json_get_or<std::string>(json, "dtype", "", where);
  if (config.torch_dtype.empty())
    config.torch_dtype = json_get_or<std::string>(json, "torch_dtype", "", where);
  config.eos_token_ids = read_eos(json, where);
  config.bos_token_id = json_get_or<int64_t>(json, "bos_token_id", -1, where);
  architecture->configure(json, where, config);
  return config;
}

std::vector<std::string_view> supported_architectures() {
  std::vector<std::string_view> names;
  for (const Architecture& architecture : architectures()) names.push_back(architecture.name);
  return names;
}

}  // namespace whit
