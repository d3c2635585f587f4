// Mistral: Llama's block, every layer with the same sliding window where one is set.
#include "models/table.h"

namespace whit {

void configure_mistral(const Json& json, std::string_view where, ModelConfig& config) {
  config.sliding_window = json_get_or<int64_t>(json, "sliding_window", 0, where);
  if (config.sliding_window < 0)
    throw Error(ErrorKind::kInvalidData, "{}: \"sliding_window\" is {}", where,
                config.sliding_window);
}

}  // namespace whit
