// A model's hyper-parameters as Hugging Face's config.json states them: values that steer one
// decoder block.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace whit {

enum class RopeScaling { kNone, kLinear, kLlama3 };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0;                  // kLlama3
  double high_freq_factor = 4.0;                 // kLlama3
  int64_t original_max_position_embeddings = 0;  // kLlama3
};

struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", …
  std::string model_type;    // "llama", …
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool qkv_bias = false;  // q, k, v projections
  bool o_bias = false;
  bool mlp_bias = false;  // gate, up, down
  bool tie_word_embeddings = false;
  // Tokens a query sees counting itself, in layers sliding_window_first_layer and up; 0: all of
  // them.
  int64_t sliding_window = 0;
  int64_t sliding_window_first_layer = 0;
  std::vector<int64_t> eos_token_ids;
  int64_t bos_token_id = -1;
  std::string torch_dtype;
  Json raw;  // config.json as read

  // Reads and validates. Throws kNotFound, kInvalidData, or kUnsupported for an architecture,
  // activation, RoPE scaling or size that no graph can be built for, naming the key.
  static ModelConfig from_json_file(const std::filesystem::path& path);
  static ModelConfig from_json(const Json& json, std::string_view where);
};

std::vector<std::string_view> supported_architectures();

}  // namespace whit
