#include "models/table.h"

#include <array>

namespace whit {
namespace {

constexpr std::array<Architecture, 3> kArchitectures = {{
    {"LlamaForCausalLM", false, configure_llama},
    {"MistralForCausalLM", false, configure_mistral},
    {"Qwen2ForCausalLM", false, configure_qwen2},
}};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

const Architecture* find_architecture(std::string_view name) {
  for (const Architecture& architecture : kArchitectures)
    if (architecture.name == name) return &architecture;
  return nullptr;
}

}  // namespace whit
