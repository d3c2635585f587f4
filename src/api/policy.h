// The public mode and policy in the terms of the lower layers: a row of quantize/algorithm.h and a
// scheme of quant/scheme.h.
#pragma once

#include <span>
#include <string_view>

#include "quant/scheme.h"
#include "whit/types.h"

namespace whit {

std::span<const QuantMode> quant_modes();
std::string_view mode_name(QuantMode mode);  // "none", or a row of the table of algorithms: "awq"

// Throws kUnsupported, listing the possible combinations, where mode and dtypes do not go together.
QuantScheme scheme_of(QuantMode mode, const QuantPolicy& policy, int64_t group_size, bool symmetric,
                      bool two_level = false);

// Throws kInvalidArgument where an engine made with `mode` and `scheme` is not what was asked for.
// QuantMode::NONE with an empty policy asks for nothing.
void check_engine_agrees(std::string_view engine_mode, const QuantScheme& engine_scheme,
                         QuantMode mode, const QuantPolicy& policy, std::string_view where);

}  // namespace whit
