// What the public API takes and gives: plain data.
//
// Every function of the API reports a failure by an exception derived from std::runtime_error whose
// message says what was asked, what is wrong, where, and what to do about it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace whit {

// The algorithm: which numbers a weight is rounded to.
enum class QuantMode {
  NONE,         // as the checkpoint stores it
  RTN,          // round to nearest
  AWQ,          // activation-aware scales and clipping (Lin et al., MLSys 2024)
  SMOOTHQUANT,  // migration of activation outliers into the weights (Xiao et al., ICML 2023)
};

// The numerics: which dtypes a linear layer computes with. An empty name takes the mode's usual one
// (AWQ: int4 and fp16, SMOOTHQUANT: int8 and int8, RTN: int8 and fp16).
struct QuantPolicy {
  std::string weight_dtype;  // "int4", "int8", or a floating-point name ("bf16", "fp16", "float")
  std::string activation_dtype;  // "int8", or a floating-point name
};

// How an engine is built, and how it runs.
struct BuildConfig {
  std::string calib = "self";   // a text file, or "self": text that the model generates
  int64_t calib_samples = 128;  // sequences
  int64_t calib_length = 512;   // tokens of each
  uint64_t seed = 0;
  int64_t group_size = 128;          // of int4 weights: 32, 64 or 128
  bool symmetric = false;            // int4 weights without zero points
  std::string head = "int8";         // embedding table and lm_head: "int8" or "bf16"
  std::filesystem::path engine_dir;  // empty: under ${XDG_CACHE_HOME:-~/.cache}/whit/engines
  int threads = 0;                   // 0: one for each CPU that the process may use
  int64_t max_model_len = 0;         // longest context; 0: the model's
  std::string isa;  // "portable", "avx2", "avx512", "amx"; empty: the best that the CPU has
};

// How the next token is chosen and when to end.
struct SamplingParams {
  int64_t max_tokens = 128;
  double temperature = 1.0;  // 0: always the likeliest token
  int64_t top_k = 0;         // 0: all
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::optional<uint64_t> seed;   // absent: another one each time
  std::vector<std::string> stop;  // texts that end the answer; they are not part of it
  bool ignore_eos = false;
};

struct CompletionOutput {
  std::string text;
  std::vector<int32_t> token_ids;  // including the end-of-sequence token where there was one
  std::string finish_reason;       // "stop" or "length"
};

struct RequestOutput {
  std::string prompt;
  std::vector<int32_t> prompt_token_ids;
  std::vector<CompletionOutput> outputs;  // one
};

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// The values of a model's config.json that shape its graph.
struct PretrainedConfig {
  std::string architecture;  // "LlamaForCausalLM", …
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  bool tie_word_embeddings = false;
  std::string torch_dtype;

  // Reads and validates config.json: a model that no graph can be built for is refused, naming the
  // key.
  static PretrainedConfig from_json_file(const std::filesystem::path& path);
};

}  // namespace whit
