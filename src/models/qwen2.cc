// Qwen2 and Qwen2.5: Llama's block with biases on q, k and v; a sliding window, off by default, in
// the upper layers only.
#include "models/table.h"

namespace whit {

void configure_qwen2(const Json& json, std::string_view where, ModelConfig& config) {
  config.qkv_bias = true;
  if (!json_get_or<bool>(json, "use_sliding_window", false, where)) return;
  config.sliding_window = json_get_or<int64_t>(json, "sliding_window", 0, where);
  config.sliding_window_first_layer = json_get_or<int64_t>(json, "max_window_layers", 28, where);
  if (config.sliding_window < 0 || config.sliding_window_first_layer < 0)
    throw Error(ErrorKind::kInvalidData,
                "{}: \"sliding_window\" or \"max_window_layers\" is negative", where);
}

}  // namespace whit
