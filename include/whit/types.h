// What the public API takes and gives: plain data.
//
// Every function of the API reports a failure by an exception derived from std::runtime_error whose
// message says what was asked, what is wrong, where, and what to do about it.
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

// The algorithm: which numbers a weight is rounded to.
enum class QuantMode {
  NONE,         // as the checkpoint stores it
  RTN,          // round to nearest
  AWQ,          // activation-aware scales and clipping (Lin et al., MLSys 2024)
  SMOOTHQUANT,  // migration of activation outliers into the weights (Xiao et al., ICML 2023)
  GPTQ,         // each weight's rounding compensated by those after it (Frantar et al., ICLR 2023)
  AWQ_GPTQ,     // AWQ's scales, then GPTQ's rounding
  AUTO,         // closest to the original, slowest: scales, compensation and correction of earlier
                // layers' errors, each only where held-out tokens agree
};

// The numerics: which dtypes a linear layer computes with. An empty name takes the mode's usual one
// (AWQ, GPTQ, AWQ_GPTQ and AUTO: int4 and fp16, SMOOTHQUANT: int8 and int8, RTN: int8 and
// fp16; beside fp8 weights: fp8). "fp8" is e4m3.
struct QuantPolicy {
  // "int4", "int8", "fp8", or a floating-point name ("bf16", "fp16", "float")
  std::string weight_dtype;
  std::string activation_dtype;  // "int8", "fp8", or a floating-point name
};

// How an engine is built, and how it runs.
struct BuildConfig {
  std::string calib = "self";   // a text file, or "self": text that the model generates
  int64_t calib_samples = 128;  // sequences
  int64_t calib_length = 512;   // tokens of each
  uint64_t seed = 0;
  int64_t group_size = 128;             // of int4 weights: 32, 64 or 128
  bool symmetric = false;               // int4 weights without zero points
  bool two_level = false;               // int4 weights for int8 activations: scales of a row are
                                        // multiples of one step, which is faster
  std::string head = "int8";            // embedding table and lm_head: "int8" or "bf16"
  std::filesystem::path engine_dir;     // empty: under ${XDG_CACHE_HOME:-~/.cache}/whit/engines
  int threads = 0;                      // 0: one for each CPU that the process may use
  int64_t max_model_len = 0;            // longest context; 0: the model's
  std::string kv_cache_dtype = "auto";  // keys and values: "auto" (the model's; bf16 in
                                        // place of f16 on a CPU with AMX), "f32", "f16", "bf16",
                                        // "int8", "int4" or, on a GPU, "fp8"
  std::string isa;  // "portable", "avx2", "avx512", "amx"; empty: the best that the CPU has
  // Where the model runs, and where it is calibrated and quantized (AUTO: on the CPU alone): "cpu"
  // (or empty), or "cuda", an NVIDIA GPU.
  std::string backend;
  int64_t max_batch_size = 32;  // answers generated together; others wait
  bool prefix_caching = true;   // what prompts begin with is kept for others, in pages of 32 tokens
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
  std::vector<int32_t> stop_token_ids;      // end the answer too, whatever ignore_eos says
  bool include_stop_str_in_output = false;  // the stop text stays part of the answer
  bool skip_special_tokens = true;          // in the text
  std::map<int32_t, float> logit_bias;      // token id → finite bias
  int logprobs = -1;  // n ≥ 0: log-probabilities of each token and of the n likeliest, n ≤ 20
  bool return_generation_logits = false;  // what each token was chosen from
  bool return_context_logits = false;     // of every position of the prompt
  int64_t n = 1;  // answers to each prompt; answer i is sampled with seed + i
};

// Row-major values.
struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;
};

struct Logprob {
  int32_t token_id = 0;
  double logprob = 0;  // natural logarithm, of the model's own distribution
};

struct TokenLogprobs {
  Logprob chosen;
  std::vector<Logprob> top;  // likeliest first
};

struct CompletionOutput {
  std::string text;
  std::vector<int32_t> token_ids;  // including the end-of-sequence token where there was one
  std::string finish_reason;       // "stop", "length" or "cancelled"
  std::string stop_reason;         // the stop text that ended the answer; empty for a token
  std::vector<TokenLogprobs> logprobs = {};  // of each token, where asked for
  Array generation_logits = {};              // [tokens, V], where asked for
};

struct RequestOutput {
  std::string prompt;
  std::vector<int32_t> prompt_token_ids;
  std::vector<CompletionOutput> outputs;  // n
  int64_t reused_tokens = 0;              // of the prompt, cached from requests before
  double prefill_s = 0, decode_s = 0;     // the first token belongs to the prefill
  Array context_logits = {};              // [prompt, V], where asked for
};

// News of one answer of a request made with LLMEngine::submit.
struct RequestUpdate {
  int64_t index = 0;  // of the answer, among the n
  // Since the update before. Text may lag behind the tokens, as in StreamUpdate.
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprobs> logprobs;  // of each token, where asked for
  Array generation_logits;              // [tokens, V], where asked for
  Array context_logits;                 // [prompt, V], with the first update of answer 0
  int64_t batch_size = 0;  // answers that a step computed together with this one, at most so far
  int64_t waiting = 0;     // answers that wait for their first step

  bool finished = false;                   // the answer's last update; what follows is set
  bool last = false;                       // the request's last one
  std::string finish_reason, stop_reason;  // as CompletionOutput's
  std::exception_ptr error;                // what it failed with
  int64_t reused_tokens = 0;               // as RequestOutput's
  double queue_s = 0, prefill_s = 0, decode_s = 0;
};

// What has become certain of an answer since the last update. Text may lag behind the tokens: a
// character can be spread over several, and what may begin a stop text is held back.
struct StreamUpdate {
  std::string_view text;
  std::span<const int32_t> token_ids;
  int64_t index = 0;  // of the answer, among the n
};

// Called by the thread that called generate(); an exception ends the request and comes out of it.
struct StreamCallbacks {
  std::function<void(const StreamUpdate&)> on_update;
  // Asked before the first step, after every update, and a few times a second; true ends the
  // answer there, with "cancelled".
  std::function<bool()> cancelled;
};

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// A tensor in the caller's memory, which must outlive its use; contiguous.
struct TensorView {
  std::string name;   // Hugging Face module path: "model.layers.0.self_attn.q_proj.weight"
  std::string dtype;  // safetensors' name: "F32", "F16", "BF16"
  std::vector<int64_t> shape;
  const void* data = nullptr;
  size_t bytes = 0;
};

// A model that is not on disk: what a Hugging Face directory holds.
struct StateDict {
  std::vector<TensorView> tensors;
  std::string config_json;             // the text of config.json
  std::string tokenizer_json;          // of tokenizer.json
  std::string tokenizer_config_json;   // empty: none
  std::string generation_config_json;  // empty: none
};

// An engine as it runs.
struct EngineInfo {
  std::string description;
  std::string isa;
  std::string backend;  // "cpu", "cuda"
  int threads = 0;
  int64_t max_model_len = 0;
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // that one decoded token reads
  double bits_per_weight = 0;
  double load_s = 0;
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
