#include "engine/engine_dir.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/checked.h"

namespace whit {
namespace fs = std::filesystem;
namespace {

constexpr const char* kManifestFile = "engine.json";
constexpr const char* kWeightsFile = "weights.safetensors";
constexpr size_t kDigestPiece = 1 << 20;

struct WeightEntries {
  SafetensorsWriter::Entry data;
  std::optional<SafetensorsWriter::Entry> scales, zeros, input_scale, salient_channels,
      salient_weight;
};

// The one place that says which tensors a module of a scheme has; reading and writing both go by
// it.
WeightEntries weight_entries(const std::string& module, int64_t n, int64_t k,
                             const EngineManifest& manifest) {
  const QuantScheme& scheme = manifest.linears.at(module);
  const auto found = manifest.salient.find(module);
  const int64_t salient = found == manifest.salient.end() ? 0 : found->second;
  WeightEntries entries;
  entries.data.name = module + ".weight";
  switch (weight_format(scheme)) {
    case WeightFormat::kInt4Group: {
      const int64_t groups = ceil_div(k, scheme.weights->group_size);
      entries.data.type = StorageType::kU8;
      entries.data.shape = {n, ceil_div(k, 2)};
      entries.scales = {module + ".weight_scale", StorageType::kF16, {n, groups}};
      if (!scheme.weights->symmetric)
        entries.zeros = {module + ".weight_zero_point", StorageType::kU8, {n, ceil_div(groups, 2)}};
      break;
    }
    case WeightFormat::kInt8Channel:
    case WeightFormat::kFp8Channel:
      entries.data.type = weight_format(scheme) == WeightFormat::kInt8Channel
                              ? StorageType::kI8
                              : StorageType::kF8E4M3;
      entries.data.shape = {n, k};
      entries.scales = {module + ".weight_scale", StorageType::kF32, {n}};
      break;
    default:
      entries.data.type = StorageType::kBF16;
      entries.data.shape = {n, k};
  }
  if (scheme.static_activations())
    entries.input_scale = {module + ".input_scale", StorageType::kF32, {1}};
  if (salient > 0) {
    entries.salient_channels = {module + ".salient_channels", StorageType::kI32, {salient}};
    entries.salient_weight = {module + ".salient_weight", StorageType::kBF16, {n, salient}};
  }
  return entries;
}

Json to_json(const EngineManifest& manifest) {
  Json schemes = Json::object(), linears = Json::object();
  for (const auto& [module, scheme] : manifest.linears) {
    const std::string name = scheme.full_name();
    schemes[name] = to_json(scheme);
    linears[module] = name;
  }
  Json json = {{"format", "whit-engine"},      {"format_version", kEngineFormatVersion},
               {"tool_version", WHIT_VERSION}, {"source", manifest.source},
               {"mode", manifest.mode},        {"scheme", to_json(manifest.scheme)},
               {"head", manifest.head},        {"calibration", manifest.calibration},
               {"quality", manifest.quality},  {"kv_cache", manifest.kv_cache},
               {"schemes", schemes},           {"linears", linears},
               {"report", manifest.report}};
  if (!manifest.quantized_on.empty()) json["quantized_on"] = manifest.quantized_on;
  if (!manifest.mixed.empty()) json["mixed"] = manifest.mixed;
  if (!manifest.salient.empty()) json["salient"] = manifest.salient;
  return json;
}

EngineManifest manifest_from_json(const Json& json, const std::string& where) {
  if (json_get_or<std::string>(json, "format", "", where) != "whit-engine")
    throw Error(ErrorKind::kInvalidData,
                "{}: not an engine of this program (\"format\" is missing)", where);
  const int64_t version = json_get<int64_t>(json, "format_version", where);
  if (version > kEngineFormatVersion)
    throw Error(ErrorKind::kUnsupported,
                "{}: engine format {} was written by a newer version ({}); this program reads up "
                "to format {}: update it, "
                "or quantize the model again",
                where, version, json_get_or<std::string>(json, "tool_version", "unknown", where),
                kEngineFormatVersion);
  if (version < 1)
    throw Error(ErrorKind::kInvalidData, "{}: \"format_version\" is {}", where, version);
  EngineManifest manifest;
  manifest.mode = json_get<std::string>(json, "mode", where);
  manifest.head = json_get<std::string>(json, "head", where);
  manifest.source = json_get_or<std::string>(json, "source", "", where);
  manifest.scheme = scheme_from_json(json.value("scheme", Json::object()), where);
  manifest.calibration = json.value("calibration", Json::object());
  manifest.report = json.value("report", Json::array());
  manifest.quality = json.value("quality", Json::object());
  manifest.kv_cache = json.value("kv_cache", Json::object());
  for (const auto& [type, choice] : manifest.kv_cache.items()) {
    const Json keys = choice.is_object() ? choice.value("keys", Json()) : Json();
    if (!keys.is_array() || !std::all_of(keys.begin(), keys.end(), [](const Json& layout) {
          return layout == "token" || layout == "channel";
        }))
      throw Error(ErrorKind::kInvalidData,
                  "{}: \"kv_cache\" must list token or channel as the \"keys\" of each layer of {}",
                  where, type);
  }
  manifest.mixed = json.value("mixed", Json::object());
  manifest.quantized_on = json.value("quantized_on", Json::object());
  std::map<std::string, QuantScheme> schemes;
  const Json scheme_table = json.value("schemes", Json::object());
  for (const auto& [name, scheme] : scheme_table.items())
    schemes[name] = scheme_from_json(scheme, where);
  const Json linear_table = json.value("linears", Json::object());
  for (const auto& [module, name] : linear_table.items()) {
    const auto found = name.is_string() ? schemes.find(name.get<std::string>()) : schemes.end();
    if (found == schemes.end())
      throw Error(ErrorKind::kInvalidData, "{}: {} names a scheme that \"schemes\" does not define",
                  where, module);
    manifest.linears[module] = found->second;
  }
  const Json salient_table = json.value("salient", Json::object());
  for (const auto& [module, count] : salient_table.items()) {
    if (!count.is_number_integer() || count.get<int64_t>() < 1)
      throw Error(ErrorKind::kInvalidData, "{}: \"salient\" of {} is no number of channels", where,
                  module);
    manifest.salient[module] = count.get<int64_t>();
  }
  return manifest;
}

std::string hexadecimal(const XXH128_hash_t& hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

struct FileDigest {
  int64_t bytes;
  std::string digest;
};

// By pieces whose pages are let go of at once: weights are verified while they are packed, and
// their pages must not be resident twice.
FileDigest digest_of_file(const fs::path& path) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  if (state == nullptr) throw Error(ErrorKind::kResource, "out of memory");
  XXH3_128bits_reset(state.get());
  const MappedFile file(path);
  for (auto rest = file.bytes(); !rest.empty();) {
    const auto piece = rest.first(std::min(rest.size(), kDigestPiece));
    XXH3_128bits_update(state.get(), piece.data(), piece.size());
    file.drop_pages(piece);
    rest = rest.subspan(piece.size());
  }
  return {static_cast<int64_t>(file.bytes().size()), hexadecimal(XXH3_128bits_digest(state.get()))};
}

}  // namespace

std::string module_of(const Node& node) {
  const std::string& name = node.weight_name;
  return name.substr(0, name.size() - std::string_view(".weight").size());
}

std::string EngineManifest::scheme_name() const { return mixed.empty() ? scheme.name() : "mixed"; }

std::string digest(std::span<const uint8_t> bytes) {
  return hexadecimal(XXH3_128bits(bytes.data(), bytes.size()));
}

bool EngineDirectory::is_engine(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path / kManifestFile, error);
}

EngineDirectory::EngineDirectory(const fs::path& path, Verification weights) : path_(path) {
  const fs::path manifest_path = path / kManifestFile;
  const std::string where = manifest_path.string();
  const Json json = parse_json(read_file(manifest_path, 256 << 20), where);
  manifest_ = manifest_from_json(json, where);
  const auto files = json.find("files");
  if (files == json.end() || !files->is_object() || !files->contains(kWeightsFile))
    throw Error(ErrorKind::kInvalidData, "{}: \"files\" does not list {}", where, kWeightsFile);
  for (const auto& [name, entry] : files->items()) {
    if (fs::path(name).filename() != name || name == kManifestFile || name == "..")
      throw Error(ErrorKind::kInvalidData,
                  "{}: \"files\" names {}, which is not a file of this directory", where, name);
    if (name != kWeightsFile) check_file(name, entry);
  }
  weights_entry_ = (*files)[kWeightsFile];
  try {
    weights_ = std::make_unique<SafetensorsFile>(path / kWeightsFile);
  } catch (const Error& error) {
    // Damage is better named by the digest than by what of the header it happens to break.
    if (error.kind() == ErrorKind::kInvalidData) check_file(kWeightsFile, weights_entry_);
    throw;
  }
  if (weights == Verification::kNow) verify_weights();
}

void EngineDirectory::verify_weights() const {
  std::call_once(weights_verified_, [&] { check_file(kWeightsFile, weights_entry_); });
}

void EngineDirectory::check_file(const std::string& name, const Json& entry) const {
  const std::string where = (path_ / kManifestFile).string();
  const auto expected = json_get<int64_t>(entry, "bytes", where);
  const auto [found, found_digest] = digest_of_file(path_ / name);
  if (found != expected || found_digest != json_get<std::string>(entry, "xxh3_128", where))
    throw Error(ErrorKind::kInvalidData,
                "{}: the content is not what {} recorded when the engine was built ({} bytes "
                "expected, {} found): copy "
                "the directory again or rebuild the engine",
                (path_ / name).string(), kManifestFile, expected, found);
}

const StoredTensor& EngineDirectory::get(const std::string& name, StorageType type,
                                         const Shape& shape) const {
  const StoredTensor* found = weights_->find(name);
  if (found == nullptr)
    throw Error(ErrorKind::kInvalidData, "{}: tensor {} is missing; rebuild the engine",
                weights_->where(), name);
  if (found->type != type || found->shape != shape)
    throw Error(ErrorKind::kInvalidData, "{}: tensor {} is {} {}, the engine's plan implies {} {}",
                weights_->where(), name, whit::name(found->type), to_string(found->shape),
                whit::name(type), to_string(shape));
  if (reinterpret_cast<uintptr_t>(found->data.data()) % 4 != 0)
    throw Error(ErrorKind::kInvalidData, "{}: tensor {} is not aligned", weights_->where(), name);
  return *found;
}

LinearWeight EngineDirectory::linear(const Node& node) const {
  const std::string module = module_of(node);
  const auto planned = manifest_.linears.find(module);
  if (planned == manifest_.linears.end())
    throw Error(ErrorKind::kInvalidData, "{}: no scheme for {}", (path_ / kManifestFile).string(),
                module);
  const QuantScheme& scheme = planned->second;
  const WeightEntries entries = weight_entries(module, node.n, node.k, manifest_);
  const StoredTensor& data = get(entries.data.name, entries.data.type, entries.data.shape);
  LinearWeight weight;
  weight.view = {
      .format = weight_format(scheme), .n = node.n, .k = node.k, .data = data.data.data()};
  if (scheme.weights) {
    weight.view.group_size = scheme.weights->group_size;
    weight.view.two_level = scheme.weights->two_level;
  }
  if (entries.scales)
    weight.view.scales =
        get(entries.scales->name, entries.scales->type, entries.scales->shape).data.data();
  if (entries.zeros)
    weight.view.zeros =
        get(entries.zeros->name, entries.zeros->type, entries.zeros->shape).data.data();
  weight.activation = activation_of(scheme);
  if (entries.input_scale) {
    std::memcpy(&weight.static_scale,
                get(entries.input_scale->name, StorageType::kF32, {1}).data.data(), 4);
    if (!(weight.static_scale > 0) || !std::isfinite(weight.static_scale))
      throw Error(ErrorKind::kInvalidData, "{}: {} is {}", weights_->where(),
                  entries.input_scale->name, weight.static_scale);
  }
  if (entries.salient_channels) {
    const StoredTensor& channels =
        get(entries.salient_channels->name, StorageType::kI32, entries.salient_channels->shape);
    weight.salient_channels = {reinterpret_cast<const int32_t*>(channels.data.data()),
                               static_cast<size_t>(entries.salient_channels->shape[0])};
    int32_t below = -1;
    for (const int32_t channel : weight.salient_channels) {
      if (channel <= below || channel >= node.k)
        throw Error(ErrorKind::kInvalidData,
                    "{}: {} holds {} after {}; channels ascend and are below {}", weights_->where(),
                    entries.salient_channels->name, channel, below, node.k);
      below = channel;
    }
    const StoredTensor& second =
        get(entries.salient_weight->name, StorageType::kBF16, entries.salient_weight->shape);
    weight.salient = {.format = WeightFormat::kBF16,
                      .n = node.n,
                      .k = entries.salient_channels->shape[0],
                      .data = second.data.data()};
  }
  // Packed copies replace the mapped pages; embedding rows stay mapped and are read as needed.
  weight.packed = [this, span = data.data] { weights_->file()->drop_pages(span); };
  return weight;
}

Tensor EngineDirectory::vector(const std::string& name, int64_t size) const {
  const StoredTensor& stored = get(name, StorageType::kF32, {size});
  Tensor tensor(DType::kF32, {size});
  std::memcpy(tensor.data<void>(), stored.data.data(), stored.data.size());
  return tensor;
}

int64_t EngineDirectory::bytes() const {
  int64_t total = 0;
  for (const auto& entry : fs::directory_iterator(path_))
    if (entry.is_regular_file()) total += static_cast<int64_t>(entry.file_size());
  return total;
}

EngineWriter::EngineWriter(const fs::path& target, const Graph& graph, EngineManifest manifest)
    : output_(target, EngineDirectory::is_engine), manifest_(std::move(manifest)) {
  std::vector<SafetensorsWriter::Entry> entries;
  std::map<std::string, bool> written;
  for (const Node& node : graph.nodes()) {
    if (node.op == Op::kRmsNorm) entries.push_back({node.weight_name, StorageType::kF32, {node.n}});
    if (node.op != Op::kLinear && node.op != Op::kEmbedding) continue;
    const std::string module = module_of(node);
    if (written[module]) continue;  // the tied table
    written[module] = true;
    const WeightEntries parts = weight_entries(module, node.n, node.k, manifest_);
    entries.push_back(parts.data);
    for (const auto& part : {parts.scales, parts.zeros, parts.input_scale, parts.salient_channels,
                             parts.salient_weight})
      if (part) entries.push_back(*part);
    if (node.bias) entries.push_back({node.name + ".bias", StorageType::kF32, {node.n}});
  }
  weights_ = std::make_unique<SafetensorsWriter>(
      output_.path() / kWeightsFile, std::move(entries),
      std::map<std::string, std::string>{{"format", "whit-engine"}},
      SafetensorsWriter::Alignment::kEach64);
  files_.push_back(kWeightsFile);
}

void EngineWriter::write_linear(const Node& node, const WeightView& weight) {
  const WeightEntries entries = weight_entries(module_of(node), node.n, node.k, manifest_);
  const auto put = [&](const std::string& name, const void* data, int64_t bytes) {
    weights_->write(name, {static_cast<const uint8_t*>(data), static_cast<size_t>(bytes)});
  };
  put(entries.data.name, weight.data, weight.n * weight.data_row_bytes());
  if (entries.scales) put(entries.scales->name, weight.scales, weight.n * weight.scale_row_bytes());
  if (entries.zeros) put(entries.zeros->name, weight.zeros, weight.n * weight.zero_row_bytes());
}

void EngineWriter::write_salient(const Node& node, std::span<const int32_t> channels,
                                 const WeightView& weight) {
  const WeightEntries entries = weight_entries(module_of(node), node.n, node.k, manifest_);
  if (!entries.salient_channels)
    throw Error(ErrorKind::kInvalidArgument, "{}: the engine's plan has no salient channels of it",
                module_of(node));
  weights_->write(entries.salient_channels->name,
                  {reinterpret_cast<const uint8_t*>(channels.data()), channels.size_bytes()});
  weights_->write(entries.salient_weight->name,
                  {static_cast<const uint8_t*>(weight.data),
                   static_cast<size_t>(weight.n * weight.data_row_bytes())});
}

void EngineWriter::write_static_scale(const Node& node, float scale) {
  weights_->write(module_of(node) + ".input_scale", {reinterpret_cast<const uint8_t*>(&scale), 4});
}

void EngineWriter::write_vector(const std::string& name, std::span<const float> values) {
  weights_->write(name, {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()});
}

void EngineWriter::write_text(const std::string& file_name, const std::string& content) {
  OutputFile file(output_.path() / file_name);
  file.write(content.data(), content.size());
  file.close();
  files_.push_back(file_name);
}

void EngineWriter::finish() {
  weights_->finish();
  weights_.reset();
  Json json = to_json(manifest_);
  json["files"] = Json::object();
  for (const std::string& name : files_) {
    const FileDigest file = digest_of_file(output_.path() / name);
    json["files"][name] = {{"bytes", file.bytes}, {"xxh3_128", file.digest}};
  }
  OutputFile file(output_.path() / kManifestFile);
  const std::string text = json.dump(1, ' ', false, Json::error_handler_t::replace);
  file.write(text.data(), text.size());
  file.close();
  output_.commit();
}

}  // namespace whit
