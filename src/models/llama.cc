// Llama 1–3 and the many models saved as LlamaForCausalLM (SmolLM2, TinyLlama, Yi, …).
#include "models/table.h"

namespace whit {

void configure_llama(const Json& json, std::string_view where, ModelConfig& config) {
  config.qkv_bias = config.o_bias = json_get_or<bool>(json, "attention_bias", false, where);
  config.mlp_bias = json_get_or<bool>(json, "mlp_bias", false, where);
}

}  // namespace whit
