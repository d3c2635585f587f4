// Hugging Face directories: config.json, model.safetensors or model.safetensors.index.json with its
// shards, the tokenizer's and the generation's JSON files. File names from the index are plain
// names inside the directory.
#include <map>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/json_bounds.h"
#include "checkpoint/contents.h"
#include "checkpoint/safetensors.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

// Of tokenizers and indices. Configs are parsed into ordered objects, which search their keys
// linearly: a hostile one of that size would take hours, and real ones have a few kilobytes (a
// tokenizer's, some hundreds).
constexpr uint64_t kMaxJsonBytes = uint64_t{256} << 20;
constexpr uint64_t kMaxConfigBytes = uint64_t{4} << 20;

// An index is parsed into sorted objects, whose keys cost little.
constexpr JsonBounds kIndexBounds{.levels = 8, .comparisons = UINT64_MAX};

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

Json read_object(const fs::path& path) {
  Json result = parse_json(read_file(path, kMaxConfigBytes), path.string());
  if (!result.is_object())
    throw Error(ErrorKind::kInvalidData, "{}: must hold a JSON object", path.string());
  return result;
}

Json read_object_or_empty(const fs::path& path) {
  return is_file(path) ? read_object(path) : Json::object();
}

// Why a directory without config.json is not what was meant.
std::string hint_for(const fs::path& directory) {
  std::error_code error;
  if (is_file(directory / "engine.json")) return "this is an engine directory, not a checkpoint";
  for (const auto& entry : fs::directory_iterator(directory, error))
    if (entry.path().extension() == ".gguf")
      return "give the path of the .gguf file in it: " + entry.path().string();
  return "a Hugging Face model directory has config.json, model.safetensors and tokenizer.json; "
         "download all of them";
}

std::string joined(const std::set<std::string>& names) {
  std::string result;
  for (const std::string& name : names) result += (result.empty() ? "" : ", ") + name;
  return result;
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

// Tensor name → shard, in the order of the index.
std::vector<std::pair<std::string, std::string>> read_index(const fs::path& path) {
  // std::map underneath: ordered_json would search its keys linearly.
  using SortedJson = nlohmann::json;
  SortedJson index;
  try {
    const std::string text = read_file(path, kMaxJsonBytes);
    // Not by the parser's callback: with it, the end of each value inside of an object makes the
    // parser look at all members of that object again.
    if (const std::string excess = json_excess(text, kIndexBounds); !excess.empty())
      throw Error(ErrorKind::kInvalidData, "{}: the JSON {}", path.string(), excess);
    index = SortedJson::parse(text);
  } catch (const SortedJson::exception& error) {
    throw Error(ErrorKind::kInvalidData, "{}: not valid JSON: {}", path.string(), error.what());
  }
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
    throw Error(ErrorKind::kInvalidData, "{}: \"weight_map\" is missing or empty", path.string());
  std::vector<std::pair<std::string, std::string>> result;
  for (const auto& [name, shard] : map->items()) {
    if (!shard.is_string())
      throw Error(ErrorKind::kInvalidData, "{}: tensor {}: the shard's name must be a string",
                  path.string(), name);
    const auto& file = shard.get_ref<const std::string&>();
    if (!is_plain_name(file))
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {}: {} is not a plain file name; shards must lie beside the index",
                  path.string(), name, Json(file).dump());
    result.emplace_back(name, file);
  }
  return result;
}

void add_sharded(const fs::path& directory, const fs::path& index_path,
                 CheckpointContents& contents) {
  const auto index = read_index(index_path);
  std::set<std::string> missing;
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> shards;
  for (const auto& [name, shard] : index)
    if (!shards.contains(shard)) {
      if (!is_file(directory / shard))
        missing.insert(shard);
      else if (missing.empty())
        shards.emplace(shard, nullptr);
    }
  if (!missing.empty())
    throw Error(ErrorKind::kNotFound,
                "{} names shards that are not there: {}; download them into {}",
                index_path.string(), joined(missing), directory.string());
  for (auto& [shard, file] : shards)
    file = std::make_shared<const SafetensorsFile>(directory / shard);
  for (const auto& [name, shard] : index) {
    const StoredTensor* tensor = shards.at(shard)->find(name);
    if (tensor == nullptr)
      throw Error(ErrorKind::kInvalidData,
                  "{}: tensor {} is not in {}, where {} says it is; download the model again",
                  directory.string(), name, shard, index_path.filename().string());
    contents.tensors.push_back(*tensor);
  }
  for (const auto& [shard, file] : shards) contents.owners.push_back(file);
}

void add_weights(const fs::path& directory, CheckpointContents& contents) {
  const fs::path single = directory / "model.safetensors",
                 index = directory / "model.safetensors.index.json";
  if (is_file(single)) {
    auto file = std::make_shared<const SafetensorsFile>(single);
    contents.tensors = file->tensors();
    contents.owners.push_back(std::move(file));
  } else if (is_file(index)) {
    add_sharded(directory, index, contents);
  } else if (is_file(directory / "pytorch_model.bin") ||
             is_file(directory / "pytorch_model.bin.index.json")) {
    throw Error(ErrorKind::kUnsupported,
                "{} has PyTorch pickles only (pytorch_model.bin), which can run code and are not "
                "read; save the model "
                "with save_pretrained(…, safe_serialization=True)",
                directory.string());
  } else {
    throw Error(ErrorKind::kNotFound,
                "{}: neither model.safetensors nor model.safetensors.index.json is there; download "
                "the weights",
                directory.string());
  }
}

std::string read_tokenizer_json(const fs::path& directory) {
  const fs::path path = directory / "tokenizer.json";
  if (!is_file(path))
    throw Error(ErrorKind::kNotFound, "{}: tokenizer.json is missing; {}", directory.string(),
                is_file(directory / "tokenizer.model")
                    ? "tokenizer.model alone is not read: save it with "
                      "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
                    : "download it from where the model came from");
  return read_file(path, kMaxJsonBytes);
}

// A list of named templates is reduced to the one that plain chat uses.
Json plain_template(const Json& value) {
  if (!value.is_array()) return value;
  for (const Json& item : value)
    if (item.is_object() && item.value("name", Json()) == "default" && item.contains("template"))
      return item["template"];
  return nullptr;
}

Json read_tokenizer_config(const fs::path& directory) {
  Json config = read_object_or_empty(directory / "tokenizer_config.json");
  if (const auto found = config.find("chat_template"); found != config.end()) {
    const Json reduced = plain_template(*found);
    *found = reduced;
  }
  // Tools that keep the template in its own file take that file over the config's entry.
  if (is_file(directory / "chat_template.jinja")) {
    config["chat_template"] = read_file(directory / "chat_template.jinja", kMaxConfigBytes);
  } else if (is_file(directory / "chat_template.json")) {
    const Json file = read_object(directory / "chat_template.json");
    if (const auto found = file.find("chat_template"); found != file.end())
      config["chat_template"] = plain_template(*found);
  }
  return config;
}

}  // namespace

CheckpointContents read_hf_directory(const fs::path& directory) {
  const fs::path config_path = directory / "config.json";
  if (!is_file(config_path))
    throw Error(ErrorKind::kNotFound, "{}: config.json is missing; {}", directory.string(),
                hint_for(directory));
  CheckpointContents contents;
  contents.config_path = config_path;
  contents.config = read_object(config_path);
  contents.generation_config = read_object_or_empty(directory / "generation_config.json");
  contents.tokenizer_json = [directory] { return read_tokenizer_json(directory); };
  contents.tokenizer_config = [directory] { return read_tokenizer_config(directory); };
  contents.tokenizer_bytes = [directory] {
    std::string bytes;
    for (const char* file :
         {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"})
      if (is_file(directory / file)) bytes += read_file(directory / file, kMaxJsonBytes);
    return bytes;
  };
  add_weights(directory, contents);
  contents.description = fmt::format(
      "{} (Hugging Face directory, {} tensors in {} file{})", directory.string(),
      contents.tensors.size(), contents.owners.size(), contents.owners.size() == 1 ? "" : "s");
  return contents;
}

}  // namespace whit
