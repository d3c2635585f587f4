// The table of model architectures: one row per Hugging Face class, one file per family.
#pragma once

#include <span>
#include <string_view>

#include "models/model_config.h"

namespace whit {

struct Architecture {
  std::string_view name;  // config.json's "architectures"[0]
  bool tied_by_default;   // transformers' default of tie_word_embeddings
  // Fills what differs between families (biases, sliding window, …) from config.json.
  void (*configure)(const Json& json, std::string_view where, ModelConfig& config);
};

std::span<const Architecture> architectures();
const Architecture* find_architecture(std::string_view name);  // null where unknown

// models/llama.cc, mistral.cc, qwen2.cc
void configure_llama(const Json& json, std::string_view where, ModelConfig& config);
void configure_mistral(const Json& json, std::string_view where, ModelConfig& config);
void configure_qwen2(const Json& json, std::string_view where, ModelConfig& config);

}  // namespace whit
