// The engine directory: engine.json (what was done, with which evidence), weights.safetensors
// (canonical low-bit weights, each at a multiple of 64 bytes), config.json, tokenizer and
// generation config. Portable: nothing in it depends on a CPU.
//
// Tensors of a linear <module>, by its scheme (layouts: quant/weight.h):
//   <module>.weight             U8 [N, ceil(K/2)] int4 · I8 [N, K] int8 · F8_E4M3 [N, K] fp8 ·
//                               BF16 or F32 [N, K]
//   <module>.weight_scale       F16 [N, G] int4 · F32 [N] int8 and fp8
//   <module>.weight_zero_point  U8 [N, ceil(G/2)] asymmetric int4
//   <module>.input_scale        F32 [1] static activations
//   <module>.bias               F32 [N]
//   <module>.salient_channels   I32 [C], ascending, and
//   <module>.salient_weight     BF16 [N, C]: added products with a few input channels
// Norm weights are F32. A tied table is stored once, as model.embed_tokens.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "engine/program.h"
#include "models/model_config.h"
#include "quant/scheme.h"

namespace whit {

inline constexpr int kEngineFormatVersion = 1;

// engine.json.
struct EngineManifest {
  std::string mode;    // "awq", "smoothquant", "rtn"
  QuantScheme scheme;  // of the decoder's linears
  std::string head;    // "int8" or "bf16"
  // Scheme of every linear and of the embedding table by module path: what the loader goes by.
  std::map<std::string, QuantScheme> linears;
  Json calibration = Json::object();  // source, samples, length, seed, digest
  Json report = Json::array();        // per scaling group: what was chosen, losses before and after
  Json quality = Json::object();      // measured figures, where they were
  // Where it was measured, "int8" and "int4": {"keys": a KeyLayout's name per layer, "losses": …}.
  Json kv_cache = Json::object();
  // Linears with a second weight, by module path: how many channels it has.
  std::map<std::string, int64_t> salient;
  // Where linears have schemes of their own: target, predictions and what the choice was made from.
  Json mixed = Json::object();
  std::string scheme_name() const;  // of `scheme`, or "mixed"
  std::string source;               // description and digest of the model it was made from
  // What calibrated and searched: "backend", and the "device" where it is a GPU. Backends sum in
  // different orders, so that near ties may be decided otherwise.
  Json quantized_on = Json::object();
};

// The module that a linear's or the embedding table's weight belongs to, as EngineManifest names
// it.
std::string module_of(const Node& node);

// When the weights, which are nearly all bytes of an engine, are compared with their digest: at
// once, or by verify_weights() while other threads work on them already. They are read with the
// care that any file needs either way; the digest tells a damaged engine from one that answers
// nonsense.
enum class Verification : uint8_t { kNow, kLater };

// Loaded, verified, mmapped.
class EngineDirectory {
 public:
  // True where `path` is a directory with an engine.json.
  static bool is_engine(const std::filesystem::path& path);
  // Throws kUnsupported for a newer format, kInvalidData for anything damaged, naming file and
  // remedy.
  explicit EngineDirectory(const std::filesystem::path& path,
                           Verification weights = Verification::kNow);
  // Throws kInvalidData where the weights' bytes are not those of their digest. Once it has
  // returned, further calls cost nothing. Any thread.
  void verify_weights() const;

  const EngineManifest& manifest() const { return manifest_; }
  const std::filesystem::path& path() const { return path_; }
  const SafetensorsFile& weights() const { return *weights_; }
  // The weight of a linear or embedding node, a view of the mapped file. Checks shape and dtype
  // against the node.
  LinearWeight linear(const Node& node) const;
  Tensor vector(const std::string& name, int64_t size) const;
  int64_t bytes() const;  // of the whole directory

 private:
  const StoredTensor& get(const std::string& name, StorageType type, const Shape& shape) const;
  void check_file(const std::string& name, const Json& entry) const;

  std::filesystem::path path_;
  EngineManifest manifest_;
  std::unique_ptr<SafetensorsFile> weights_;
  Json weights_entry_;  // of engine.json's "files"
  mutable std::once_flag weights_verified_;
};

// Written layer by layer in graph order; appears under its final name only when finish() has
// returned.
class EngineWriter {
 public:
  // `manifest.linears` decides every tensor's type. Replaces an existing engine directory, and
  // nothing else.
  EngineWriter(const std::filesystem::path& target, const Graph& graph, EngineManifest manifest);

  void write_linear(const Node& node, const WeightView& weight);  // data, scales, zero points
  void write_salient(const Node& node, std::span<const int32_t> channels, const WeightView& weight);
  void write_static_scale(const Node& node, float scale);
  void write_vector(const std::string& name,
                    std::span<const float> values);  // norm weights, biases
  EngineManifest& manifest() { return manifest_; }
  // Other files of the directory: config.json, tokenizer.json, …
  void write_text(const std::string& file_name, const std::string& content);
  void finish();

 private:
  OutputDirectory output_;
  EngineManifest manifest_;
  std::unique_ptr<SafetensorsWriter> weights_;
  std::vector<std::string> files_;
};

// XXH3-128 of bytes, in hexadecimal.
std::string digest(std::span<const uint8_t> bytes);

}  // namespace whit
