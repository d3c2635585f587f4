// The front door: from a model's directory to answers.
//
//   auto engine = whit::LLMEngine::from_pretrained(
//       "SmolLM2-135M-Instruct", whit::QuantMode::AWQ,
//       {.weight_dtype = "int4", .activation_dtype = "int8"});
//   auto answer = engine.generate("The capital of France is", {.max_tokens = 16});
//
// Several threads may use an engine. Their requests run together (in-flight batching): a step
// computes a token of each, and what a request answers does not depend on the others.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "whit/types.h"

namespace whit {

class Model;

class LLMEngine {
 public:
  // `model_dir` is a Hugging Face directory, a .gguf file, or an engine directory. What is missing
  // is done: calibration, quantization, building; an engine built before for the same model and
  // settings is loaded from `config.engine_dir` or the cache. An engine directory runs as it is; a
  // mode or policy that contradicts it is an error.
  static LLMEngine from_pretrained(const std::filesystem::path& model_dir,
                                   QuantMode mode = QuantMode::NONE, const QuantPolicy& policy = {},
                                   const BuildConfig& config = {});
  // The same for a model in memory. Only the engine is written; with QuantMode::NONE nothing is,
  // and the tensors must outlive the LLMEngine.
  static LLMEngine from_state_dict(const StateDict& model, QuantMode mode = QuantMode::NONE,
                                   const QuantPolicy& policy = {}, const BuildConfig& config = {});
  ~LLMEngine();
  LLMEngine(LLMEngine&&) noexcept;
  LLMEngine& operator=(LLMEngine&&) noexcept;

  // Starts a request and returns at once. `on_update` is called by the engine's thread after every
  // step that has news of the request, until the one that is its last; it must return soon, must
  // not throw and must not wait for this engine. Throws (InvalidArgument) where the request cannot
  // be served. Requests that run when the engine is destroyed end without an update.
  uint64_t submit(std::span<const int32_t> prompt, const SamplingParams& params,
                  std::function<void(RequestUpdate)> on_update);
  // Ends a request, with "cancelled", after the step that is running. One that is done or unknown
  // is ignored.
  void cancel(uint64_t request);

  // Continues texts, taken as they are, all together. One output for each prompt, in order.
  std::vector<RequestOutput> generate(std::span<const std::string> prompts,
                                      const SamplingParams& params = {});
  RequestOutput generate(std::string_view prompt, const SamplingParams& params = {});
  // Continues a text that is tokens already; the output's `prompt` stays empty.
  RequestOutput generate(std::span<const int32_t> prompt, const SamplingParams& params,
                         const StreamCallbacks& callbacks);

  // Answers a conversation through the model's chat template. Nothing in a message becomes a
  // control token.
  RequestOutput chat(std::span<const ChatMessage> messages, const SamplingParams& params = {});

  // Text to tokens and back. `add_special_tokens`: what the model's tokenizer puts around a text.
  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;
  std::string token(int32_t id) const;  // as the vocabulary spells it; empty for unknown ids
  // The tokens of a conversation followed by the opening of the assistant's turn.
  std::vector<int32_t> chat_prompt(std::span<const ChatMessage> messages) const;

  // Logits [tokens, V] of every position of a prompt, from an empty context.
  Array logits(std::span<const int32_t> prompt);
  // Values inside the model while it reads a prompt, [tokens, width] by name:
  //   model.embed_tokens.output, model.layers.<i>.output, model.norm.output, and
  //   <linear>.input, in f32, before an int8 activation scheme rounds it.
  // Layers are lowered one at a time, so that memory grows by one layer only.
  std::map<std::string, Array> taps(std::span<const int32_t> prompt,
                                    std::span<const std::string> names);
  std::vector<std::string> tap_names() const;
  // A linear's (or model.embed_tokens') weight as it computes, dequantized, [N, K].
  Array weight(std::string_view module) const;
  std::vector<std::string> weight_names() const;

  // Copies the engine directory to `directory`, which appears whole or not at all; an engine that
  // is there is replaced. A model that was not quantized has none (an error).
  void save(const std::filesystem::path& directory) const;
  // Writes a Hugging Face directory for other programs. format: "dequantized" (floating-point
  // weights), "compressed-tensors" or "awq" (the engine's own codes; an error where the format
  // cannot express a weight). dtype, of what is not quantized: "float32", "float16", "bfloat16" or
  // "auto", which is float32, and float16 beside quantized weights.
  void export_hf(const std::filesystem::path& directory, std::string_view dtype = "auto",
                 std::string_view format = "dequantized") const;

  EngineInfo info() const;
  PretrainedConfig config() const;
  // The directory or file that runs: model_dir itself, or the engine that was built from it; empty
  // for an unquantized model in memory.
  const std::filesystem::path& path() const;

 private:
  struct State;
  explicit LLMEngine(std::unique_ptr<State> state);
  static LLMEngine from_model(Model model, const std::filesystem::path& model_dir, QuantMode mode,
                              const QuantPolicy& policy, const BuildConfig& config);
  std::unique_ptr<State> state_;
};

}  // namespace whit
