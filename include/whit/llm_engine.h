// The front door: from a model's directory to answers.
//
//   auto engine = whit::LLMEngine::from_pretrained(
//       "SmolLM2-135M-Instruct", whit::QuantMode::AWQ,
//       {.weight_dtype = "int4", .activation_dtype = "int8"});
//   auto answer = engine.generate("The capital of France is", {.max_tokens = 16});
//
// An engine is used by one thread at a time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "whit/types.h"

namespace whit {

class LLMEngine {
 public:
  // `model_dir` is a Hugging Face directory, a .gguf file, or an engine directory. What is missing
  // is done: calibration, quantization, building; an engine built before for the same model and
  // settings is loaded from `config.engine_dir` or the cache. An engine directory runs as it is; a
  // mode or policy that contradicts it is an error.
  static LLMEngine from_pretrained(const std::filesystem::path& model_dir,
                                   QuantMode mode = QuantMode::NONE, const QuantPolicy& policy = {},
                                   const BuildConfig& config = {});
  ~LLMEngine();
  LLMEngine(LLMEngine&&) noexcept;
  LLMEngine& operator=(LLMEngine&&) noexcept;

  // Continues texts, taken as they are. One output for each prompt, in order.
  std::vector<RequestOutput> generate(std::span<const std::string> prompts,
                                      const SamplingParams& params = {});
  RequestOutput generate(std::string_view prompt, const SamplingParams& params = {});

  // Answers a conversation through the model's chat template. Nothing in a message becomes a
  // control token.
  RequestOutput chat(std::span<const ChatMessage> messages, const SamplingParams& params = {});

  PretrainedConfig config() const;
  // The directory or file that runs: model_dir itself, or the engine that was built from it.
  const std::filesystem::path& path() const;

 private:
  struct State;
  explicit LLMEngine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace whit
