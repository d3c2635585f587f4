#include "engine/model.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "checkpoint/dequantize.h"

namespace whit {
namespace fs = std::filesystem;

struct Model::Text {
  std::string tokenizer_json;
  Json tokenizer_config = Json::object();
  Json generation_config = Json::object();
  std::string where;
  std::once_flag tokenizer_once, config_once;
  std::unique_ptr<Tokenizer> tokenizer;
  TokenizerConfig config;
};

namespace {

Json read_json_or_empty(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error)) return Json::object();
  return parse_json(read_file(path, 64 << 20), path.string());
}

// bf16 weights are executed as they are mapped; everything else becomes f32 for the exact kernel.
LinearWeight checkpoint_linear(const Checkpoint& checkpoint, const Node& node) {
  const StoredTensor& stored = checkpoint.get(node.weight_name);
  LinearWeight weight;
  weight.view = {.n = node.n, .k = node.k};
  if (stored.type == StorageType::kBF16 && stored.shape == Shape{node.n, node.k} &&
      reinterpret_cast<uintptr_t>(stored.data.data()) % 2 == 0) {
    const auto* bits = reinterpret_cast<const uint16_t*>(stored.data.data());
    for (int64_t i = 0; i < node.n * node.k; ++i)
      if ((bits[i] & 0x7f80) == 0x7f80)
        throw Error(ErrorKind::kInvalidData,
                    "{}: tensor {} holds NaN or infinity at element {}; the file is damaged",
                    checkpoint.description(), node.weight_name, i);
    weight.view.format = WeightFormat::kBF16;
    weight.view.data = bits;
    weight.packed = [&checkpoint, &stored] { checkpoint.release(stored); };
    return weight;
  }
  auto tensor = std::make_shared<Tensor>(
      checkpoint.load_f32(node.weight_name, {node.n, node.k}, "config.json's sizes"));
  checkpoint.release(stored);
  weight.view.format = WeightFormat::kF32;
  weight.view.data = tensor->data<float>();
  weight.owner = std::move(tensor);
  return weight;
}

LinearWeight prequantized_linear(const Prequantized& prequantized, const Checkpoint& checkpoint,
                                 const Node& node) {
  auto linear = std::make_shared<PrequantizedLinear>(
      prequantized.read(checkpoint, node.name, node.n, node.k));
  LinearWeight weight;
  weight.view = linear->weight.view();
  weight.activation = activation_of(linear->scheme);
  weight.static_scale = linear->static_scale;
  weight.owner = std::move(linear);
  return weight;
}

}  // namespace

Model Model::open(const fs::path& path) { return open(path, Verification::kNow); }

Model Model::open(const fs::path& path, Verification weights) {
  if (!EngineDirectory::is_engine(path)) {
    std::error_code error;
    if (!fs::exists(path, error))
      throw Error(ErrorKind::kNotFound,
                  "{} does not exist; MODEL is a Hugging Face directory, a .gguf file or an engine "
                  "directory",
                  path.string());
    return from_checkpoint(Checkpoint::open(path), path.string());
  }
  Model model;
  model.text_ = std::make_shared<Text>();
  Text& text = *model.text_;
  text.where = path.string();
  model.engine_ = std::make_shared<EngineDirectory>(path, weights);
  model.config_ = std::make_shared<ModelConfig>(ModelConfig::from_json_file(path / "config.json"));
  text.tokenizer_config = read_json_or_empty(path / "tokenizer_config.json");
  text.generation_config = read_json_or_empty(path / "generation_config.json");
  model.graph_ = std::make_shared<Graph>(build_graph(*model.config_));
  return model;
}

Model Model::from_checkpoint(Checkpoint checkpoint, const std::string& where) {
  Model model;
  model.text_ = std::make_shared<Text>();
  model.text_->where = where;
  model.text_->generation_config = checkpoint.generation_config();
  model.config_ = std::make_shared<ModelConfig>(ModelConfig::from_json(checkpoint.config(), where));
  if (auto prequantized = Prequantized::from_config(checkpoint.config(), where))
    model.prequantized_ = std::make_shared<Prequantized>(std::move(*prequantized));
  model.checkpoint_ = std::make_shared<Checkpoint>(std::move(checkpoint));
  model.graph_ = std::make_shared<Graph>(build_graph(*model.config_));
  return model;
}

WeightProvider Model::weights() const {
  if (engine_)
    return {
        .linear = [this](const Node& node) { return engine_->linear(node); },
        .norm = [this](const Node& node) { return engine_->vector(node.weight_name, node.n); },
        .bias = [this](const Node& node) { return engine_->vector(node.name + ".bias", node.n); }};
  return {.linear =
              [this](const Node& node) {
                return prequantized_ && prequantized_->holds(*checkpoint_, node.name)
                           ? prequantized_linear(*prequantized_, *checkpoint_, node)
                           : checkpoint_linear(*checkpoint_, node);
              },
          .norm =
              [this](const Node& node) {
                return checkpoint_->load_f32(node.weight_name, {node.n}, "hidden_size");
              },
          .bias =
              [this](const Node& node) {
                return checkpoint_->load_f32(node.name + ".bias", {node.n}, "config.json's sizes");
              }};
}

const Tokenizer& Model::tokenizer() const {
  std::call_once(text_->tokenizer_once, [this] {
    if (engine_) {
      const fs::path path = engine_->path() / "tokenizer.json";
      text_->tokenizer = std::make_unique<Tokenizer>(
          Tokenizer::from_json(read_file(path, 256 << 20), path.string()));
    } else {
      text_->tokenizer = std::make_unique<Tokenizer>(
          Tokenizer::from_json(checkpoint_->tokenizer_json(), text_->where));
    }
    if (text_->tokenizer->vocab_size() > config_->vocab_size)
      throw Error(ErrorKind::kInvalidData,
                  "{}: the tokenizer has {} tokens but config.json's vocab_size is {}: tokenizer "
                  "and weights are not of "
                  "one model",
                  text_->where, text_->tokenizer->vocab_size(), config_->vocab_size);
  });
  return *text_->tokenizer;
}

const TokenizerConfig& Model::tokenizer_config() const {
  std::call_once(text_->config_once, [this] {
    const Json& json = checkpoint_ ? checkpoint_->tokenizer_config() : text_->tokenizer_config;
    text_->config =
        TokenizerConfig::from_json(json.dump(-1, ' ', false, Json::error_handler_t::replace),
                                   text_->where + " tokenizer_config.json");
  });
  return text_->config;
}

std::vector<int32_t> Model::stop_ids() const {
  std::set<int32_t> ids;
  const auto add = [&](const Json& value) {
    if (value.is_number_integer() && value.get<int64_t>() >= 0 &&
        value.get<int64_t>() < config_->vocab_size)
      ids.insert(static_cast<int32_t>(value.get<int64_t>()));
  };
  const auto found = text_->generation_config.find("eos_token_id");
  if (found != text_->generation_config.end()) {
    if (found->is_array())
      for (const Json& id : *found) add(id);
    else
      add(*found);
  }
  for (const int64_t id : config_->eos_token_ids) add(id);
  return {ids.begin(), ids.end()};
}

std::string Model::description() const {
  if (checkpoint_) return checkpoint_->description();
  const EngineManifest& manifest = engine_->manifest();
  return fmt::format("engine {} ({} {}, head {})", engine_->path().string(), manifest.mode,
                     manifest.scheme_name(), manifest.head);
}

int64_t Model::parameters() const {
  int64_t total = 0;
  for (const Node& node : graph_->nodes()) {
    if (node.op == Op::kRmsNorm) total += node.n;
    if (node.op == Op::kEmbedding) total += node.n * node.k;
    if (node.op == Op::kLinear && !(node.name == "lm_head" && config_->tie_word_embeddings))
      total += node.n * node.k + (node.bias ? node.n : 0);
  }
  return total;
}

int64_t Model::stored_bytes() const {
  if (engine_) return engine_->bytes();
  int64_t total = 0;
  for (const std::string& name : checkpoint_->names())
    total += static_cast<int64_t>(checkpoint_->get(name).data.size());
  return total;
}

double Model::bits_per_weight() const {
  int64_t bytes = 0;
  if (engine_) {
    for (const StoredTensor& tensor : engine_->weights().tensors())
      bytes += static_cast<int64_t>(tensor.data.size());
  } else {
    bytes = stored_bytes();
  }
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(parameters());
}

DType Model::default_kv_dtype() const {
  if (engine_ || prequantized_) return DType::kF16;
  for (const Node& node : graph_->nodes())
    if (node.op == Op::kLinear && checkpoint_->get(node.weight_name).type == StorageType::kBF16)
      return DType::kF16;
  return DType::kF32;
}

KvFormat Model::kv_format(std::string_view dtype) const {
  if (dtype == "auto") return default_kv_dtype();
  const auto& names = kKvCacheDtypes;
  if (std::find(names.begin(), names.end(), dtype) == names.end())
    throw Error(ErrorKind::kInvalidArgument,
                "\"{}\" is no type of keys and values; the possible ones are {}", dtype,
                fmt::join(names, ", "));
  KvFormat format(parse_kv_type(dtype));
  if (!is_integer(format.type)) return format;
  if (engine_) {
    const Json& measured = engine_->manifest().kv_cache;
    const auto found = measured.find(dtype);
    if (found != measured.end() &&
        std::ssize((*found)["keys"]) == static_cast<ptrdiff_t>(graph_->layers())) {
      for (const Json& layout : (*found)["keys"])
        format.key_layouts.push_back(parse_key_layout(layout.get<std::string>()));
      return format;
    }
  }
  for (const Node& node : graph_->nodes()) {
    if (node.op != Op::kAttention) continue;
    // RoPE stands between the keys' linear and attention.
    const Node* producer = &graph_->node(graph_->value(node.inputs[1]).producer);
    while (producer->op == Op::kRope)
      producer = &graph_->node(graph_->value(producer->inputs[0]).producer);
    format.key_layouts.push_back(producer->bias ? KeyLayout::kChannel
                                                : default_key_layout(format.type));
  }
  return format;
}

std::vector<std::pair<std::string, std::string>> Model::text_files() const {
  std::vector<std::pair<std::string, std::string>> files;
  files.emplace_back("config.json", config_->raw.dump(2));
  if (engine_) {
    for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}) {
      std::error_code error;
      if (fs::exists(engine_->path() / name, error))
        files.emplace_back(name, read_file(engine_->path() / name));
    }
    return files;
  }
  files.emplace_back("tokenizer.json", checkpoint_->tokenizer_json());
  const auto dump = [](const Json& json) {
    return json.dump(2, ' ', false, Json::error_handler_t::replace);
  };
  files.emplace_back("tokenizer_config.json", dump(checkpoint_->tokenizer_config()));
  files.emplace_back("generation_config.json", dump(checkpoint_->generation_config()));
  return files;
}

}  // namespace whit
