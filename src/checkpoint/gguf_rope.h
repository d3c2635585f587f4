// RoPE scaling as a GGUF file states it, in config.json's terms.
#pragma once

#include <string_view>

#include "base/json.h"
#include "checkpoint/gguf.h"

namespace whit {

// The value of "rope_scaling": null, or an object with rope_type linear, llama3, … Throws
// kUnsupported where the file's per-frequency factors are none that config.json can express.
Json rope_scaling_from_gguf(const GgufFile& file, std::string_view architecture, int64_t head_dim,
                            double theta);

}  // namespace whit
