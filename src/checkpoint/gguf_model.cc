// GGUF → Hugging Face: tensor names, the row order of q and k, config.json and
// generation_config.json.
//
// Key names: ggml's docs/gguf.md. llama.cpp's converter stores q and k of the llama architecture
// (which is Mistral's too) for an interleaved RoPE; a StoredTensor's permuted_heads undoes that.
// Qwen2's rows are in Hugging Face order already.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <set>

#include "base/error.h"
#include "checkpoint/contents.h"
#include "checkpoint/gguf_rope.h"
#include "checkpoint/gguf_tokenizer.h"

namespace whit {
namespace {

struct Architecture {
  std::string_view name, model_type, class_name;
  bool interleaved_qk;
  bool qkv_bias_implied;  // the class has biases on q, k and v without a config key that says so
};
constexpr Architecture kArchitectures[] = {
    {"llama", "llama", "LlamaForCausalLM", true, false},
    {"qwen2", "qwen2", "Qwen2ForCausalLM", false, true},
};

struct Renamed {
  std::string_view ggml, hugging_face;
};
constexpr Renamed kModelTensors[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};
constexpr Renamed kLayerTensors[] = {
    {"attn_norm", "input_layernorm"}, {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},   {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};
// Consumed by the config (rope_freqs) or derivable (attn_rot_embd).
constexpr std::string_view kNotWeights[] = {"rope_freqs", "attn_rot_embd"};

class GgufModel {
 public:
  explicit GgufModel(const GgufFile& file) : file_(file), architecture_(find_architecture()) {
    heads_ = require("attention.head_count");
    kv_heads_ = uniform("attention.head_count_kv", heads_);
    hidden_size_ = require("embedding_length");
    head_dim_ = head_dim();
  }

  std::vector<StoredTensor> tensors() const {
    std::vector<StoredTensor> result;
    for (StoredTensor tensor : file_.tensors()) {
      const Name name = parse(tensor.name);
      if (std::find(std::begin(kNotWeights), std::end(kNotWeights), name.part) !=
          std::end(kNotWeights))
        continue;
      if (architecture_.interleaved_qk && (name.part == "attn_q" || name.part == "attn_k")) {
        tensor.permuted_heads = name.part == "attn_q" ? heads_ : kv_heads_;
        const int64_t rows = tensor.shape.size() == 1 ? tensor.shape[0] : tensor.rows();
        if (rows % (2 * tensor.permuted_heads) != 0)
          throw Error(ErrorKind::kInvalidData,
                      "{}: tensor {} {} does not split into {} heads of even size", file_.where(),
                      tensor.name, to_string(tensor.shape), tensor.permuted_heads);
      }
      tensor.name = hugging_face_name(tensor.name, name);
      result.push_back(std::move(tensor));
    }
    return result;
  }

  Json config() const {
    const double theta = number("rope.freq_base").value_or(10000.0);
    Json config;
    const auto sliding_window = file_.integer(key("attention.sliding_window")).value_or(0);
    const bool mistral = architecture_.name == "llama" && sliding_window > 0;
    config["architectures"] = {mistral ? "MistralForCausalLM"
                                       : std::string(architecture_.class_name)};
    config["model_type"] = mistral ? "mistral" : std::string(architecture_.model_type);
    config["hidden_size"] = hidden_size_;
    config["intermediate_size"] = require("feed_forward_length");
    config["num_hidden_layers"] = require("block_count");
    config["num_attention_heads"] = heads_;
    config["num_key_value_heads"] = kv_heads_;
    config["head_dim"] = head_dim_;
    config["vocab_size"] = vocab_size();
    config["max_position_embeddings"] = require("context_length");
    config["rms_norm_eps"] = positive("attention.layer_norm_rms_epsilon");
    config["rope_theta"] = theta;
    config["rope_scaling"] = rope_scaling_from_gguf(file_, architecture_.name, head_dim_, theta);
    config["hidden_act"] = "silu";
    if (!architecture_.qkv_bias_implied) {
      config["attention_bias"] = file_.find("blk.0.attn_q.bias") != nullptr;
      config["mlp_bias"] = file_.find("blk.0.ffn_down.bias") != nullptr;
    }
    if (mistral) config["sliding_window"] = sliding_window;
    config["tie_word_embeddings"] = file_.find("output.weight") == nullptr;
    for (const auto& [name, id] : special_ids()) config[name] = id;
    config["torch_dtype"] = "float32";
    return config;
  }

  Json generation_config() const {
    Json result = Json::object();
    for (const auto& [name, id] : special_ids()) result[name] = id;
    // A chat model ends its turn with a token of its own; Hugging Face lists all that end
    // generation.
    if (result.contains("eos_token_id")) {
      std::set<int64_t> ends{result["eos_token_id"].get<int64_t>()};
      for (const char* extra : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
        if (const auto id = file_.integer(extra)) ends.insert(*id);
      if (ends.size() > 1) result["eos_token_id"] = ends;
    }
    return result;
  }

 private:
  // "blk.3.attn_q.weight" → layer 3, part attn_q, suffix weight; layer −1 for the model's own
  // tensors.
  struct Name {
    int64_t layer = -1;
    std::string_view part, suffix;
  };

  const Architecture& find_architecture() const {
    const auto wanted = file_.string("general.architecture");
    if (!wanted) throw_missing("general.architecture");
    if (file_.integer("split.count").value_or(1) > 1)
      throw Error(
          ErrorKind::kUnsupported,
          "{} is one part of a split GGUF model; join the parts with llama-gguf-split --merge",
          file_.where());
    for (const Architecture& known : kArchitectures)
      if (known.name == *wanted) {
        const auto experts = file_.integer(fmt::format("{}.expert_count", known.name)).value_or(0);
        if (experts > 0)
          throw Error(ErrorKind::kUnsupported,
                      "{}: mixture-of-experts models ({} experts) are not supported", file_.where(),
                      experts);
        return known;
      }
    throw Error(ErrorKind::kUnsupported,
                "{}: architecture \"{}\" is not supported; GGUF files of llama (with mistral) and "
                "qwen2 are",
                file_.where(), *wanted);
  }

  std::string key(std::string_view name) const {
    return fmt::format("{}.{}", architecture_.name, name);
  }

  [[noreturn]] void throw_missing(std::string_view key) const {
    throw Error(ErrorKind::kNotFound,
                "{}: key {} is missing; convert the model again with a current tool", file_.where(),
                key);
  }

  int64_t in_range(std::string_view name, int64_t value) const {
    if (value < 1 || value > INT32_MAX)
      throw Error(ErrorKind::kInvalidData, "{}: {} = {} is out of range", file_.where(), key(name),
                  value);
    return value;
  }

  // A positive number that may also be given as one equal value per layer.
  int64_t uniform(std::string_view name, int64_t fallback) const {
    const auto values = file_.integers(key(name));
    if (!values || values->empty()) return fallback;
    for (const int64_t value : *values)
      if (value != values->front())
        throw Error(ErrorKind::kUnsupported,
                    "{}: {} differs between layers, which is not supported", file_.where(),
                    key(name));
    return in_range(name, values->front());
  }
  int64_t require(std::string_view name) const {
    if (!file_.has(key(name))) throw_missing(key(name));
    return uniform(name, 0);
  }
  std::optional<double> number(std::string_view name) const {
    const auto value = file_.number(key(name));
    if (value && !(*value > 0 && std::isfinite(*value)))
      throw Error(ErrorKind::kInvalidData, "{}: {} = {} is out of range", file_.where(), key(name),
                  *value);
    return value;
  }
  double positive(std::string_view name) const {
    const auto value = number(name);
    if (!value) throw_missing(key(name));
    return *value;
  }

  int64_t head_dim() const {
    const auto stated = file_.integer(key("attention.key_length"));
    if (!stated && hidden_size_ % heads_ != 0)
      throw Error(ErrorKind::kInvalidData,
                  "{}: embedding_length {} is not a multiple of attention.head_count {}",
                  file_.where(), hidden_size_, heads_);
    const int64_t result =
        stated ? in_range("attention.key_length", *stated) : hidden_size_ / heads_;
    if (file_.integer(key("attention.value_length")).value_or(result) != result)
      throw Error(ErrorKind::kUnsupported,
                  "{}: attention.value_length differs from the key length {}", file_.where(),
                  result);
    if (file_.integer(key("rope.dimension_count")).value_or(result) != result)
      throw Error(ErrorKind::kUnsupported,
                  "{}: rope.dimension_count differs from the head size {}: partial RoPE is not "
                  "supported",
                  file_.where(), result);
    if (result % 2 != 0)
      throw Error(ErrorKind::kInvalidData, "{}: a head size of {} is odd; RoPE needs pairs",
                  file_.where(), result);
    return result;
  }

  int64_t vocab_size() const {
    const StoredTensor* embedding = file_.find("token_embd.weight");
    if (embedding == nullptr || embedding->shape.size() != 2)
      throw Error(ErrorKind::kInvalidData, "{}: tensor token_embd.weight is missing or no matrix",
                  file_.where());
    const uint64_t tokens = file_.array_size("tokenizer.ggml.tokens");
    if (tokens > static_cast<uint64_t>(embedding->shape[0]))
      throw Error(ErrorKind::kInvalidData,
                  "{}: the vocabulary has {} tokens, token_embd.weight only {} rows", file_.where(),
                  tokens, embedding->shape[0]);
    return embedding->shape[0];
  }

  std::vector<std::pair<std::string, int64_t>> special_ids() const {
    std::vector<std::pair<std::string, int64_t>> result;
    constexpr std::array<Renamed, 3> kIds = {{{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                              {"tokenizer.ggml.eos_token_id", "eos_token_id"},
                                              {"tokenizer.ggml.padding_token_id", "pad_token_id"}}};
    for (const Renamed& id : kIds)
      if (const auto value = file_.integer(id.ggml)) result.emplace_back(id.hugging_face, *value);
    return result;
  }

  static Name parse(std::string_view tensor) {
    Name name;
    const size_t dot = tensor.rfind('.');
    if (dot == tensor.npos) return name;
    name.suffix = tensor.substr(dot + 1);
    name.part = tensor.substr(0, dot);
    constexpr std::string_view kBlock = "blk.";
    if (!name.part.starts_with(kBlock)) return name;
    const char* begin = name.part.data() + kBlock.size();
    const char* end = name.part.data() + name.part.size();
    const auto [after, error] = std::from_chars(begin, end, name.layer);
    const bool padded =
        *begin == '0' && after - begin > 1;  // "blk.07" would be a second name of layer 7
    if (error != std::errc{} || after == end || *after != '.' || name.layer < 0 || padded)
      return {};
    name.part = std::string_view(after + 1, static_cast<size_t>(end - after - 1));
    return name;
  }

  std::string hugging_face_name(std::string_view tensor, const Name& name) const {
    const std::span<const Renamed> table = name.layer < 0 ? std::span<const Renamed>(kModelTensors)
                                                          : std::span<const Renamed>(kLayerTensors);
    if (name.suffix == "weight" || name.suffix == "bias")
      for (const Renamed& row : table)
        if (row.ggml == name.part)
          return name.layer < 0 ? fmt::format("{}.{}", row.hugging_face, name.suffix)
                                : fmt::format("model.layers.{}.{}.{}", name.layer, row.hugging_face,
                                              name.suffix);
    throw Error(ErrorKind::kUnsupported, "{}: tensor {} has no place in a {} model", file_.where(),
                tensor, architecture_.name);
  }

  const GgufFile& file_;
  const Architecture& architecture_;
  int64_t heads_ = 0, kv_heads_ = 0, hidden_size_ = 0, head_dim_ = 0;
};

}  // namespace

CheckpointContents read_gguf(std::shared_ptr<const GgufFile> file) {
  const GgufModel model(*file);
  CheckpointContents contents;
  contents.is_gguf = true;
  contents.config_path = file->where();
  contents.tensors = model.tensors();
  contents.config = model.config();
  contents.generation_config = model.generation_config();
  contents.tokenizer_json = [file] { return tokenizer_json_from_gguf(*file); };
  contents.tokenizer_config = [file] { return tokenizer_config_from_gguf(*file); };
  contents.tokenizer_bytes = [file] {
    return std::string(reinterpret_cast<const char*>(file->header().data()), file->header().size());
  };
  contents.description = fmt::format("{} (GGUF version {}, {} tensors)", file->where(),
                                     file->version(), contents.tensors.size());
  contents.owners.push_back(std::move(file));
  return contents;
}

}  // namespace whit
