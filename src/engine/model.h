// A model opened from any MODEL argument: a Hugging Face directory, also one that another tool has
// quantized, a GGUF file or an engine directory.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>

#include "checkpoint/checkpoint.h"
#include "checkpoint/prequantized.h"
#include "engine/engine_dir.h"
#include "graph/graph.h"
#include "models/model_config.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/tokenizer_config.h"

namespace whit {

class Model {
 public:
  // Throws kNotFound or kInvalidData with what a MODEL may be. Who asks for an engine's weights to
  // be verified later does so, by engine()->verify_weights(), before anything of them is shown.
  static Model open(const std::filesystem::path& path);
  static Model open(const std::filesystem::path& path, Verification weights);
  static Model from_checkpoint(Checkpoint checkpoint, const std::string& where);

  const ModelConfig& config() const { return *config_; }
  const Graph& graph() const { return *graph_; }
  // Weights as they are stored: of an engine and of a quantized checkpoint at their schemes, else
  // in floating point. Every shape is checked against the graph; NaN and infinity are errors naming
  // the tensor. The model must outlive the provider.
  WeightProvider weights() const;

  const Checkpoint* checkpoint() const { return checkpoint_.get(); }  // null for an engine
  const EngineDirectory* engine() const { return engine_.get(); }     // null for a checkpoint
  // Of a checkpoint that another tool has quantized; null for others and for engines.
  const Prequantized* prequantized() const { return prequantized_.get(); }

  const Tokenizer& tokenizer()
      const;  // loaded at the first call; checked against the vocabulary size
  const TokenizerConfig& tokenizer_config() const;  // special tokens' texts and chat templates
  std::vector<int32_t> stop_ids()
      const;  // end-of-sequence ids of generation_config.json and config.json

  std::string description() const;
  int64_t parameters() const;      // weights and biases by the config
  int64_t stored_bytes() const;    // on disk: checkpoint tensors, or the engine directory
  double bits_per_weight() const;  // of the stored tensors over parameters()
  DType default_kv_dtype() const;  // f32 for f32 sources, f16 otherwise
  // What the cache holds where "auto" (default_kv_dtype), "f32", "f16", "int8" or "int4" is asked
  // for. The layout of integer keys is what was measured for the engine; else per channel where
  // keys have biases, whose channels are unequal, and the type's default elsewhere. Throws
  // kInvalidArgument with the possible names.
  KvFormat kv_format(std::string_view dtype) const;

  // The text files an engine directory carries along: name and content.
  std::vector<std::pair<std::string, std::string>> text_files() const;

 private:
  std::shared_ptr<const ModelConfig> config_;
  std::shared_ptr<const Graph> graph_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Prequantized> prequantized_;
  std::shared_ptr<const EngineDirectory> engine_;
  struct Text;  // tokenizer and its config, made when first asked for
  std::shared_ptr<Text> text_;
};

}  // namespace whit
