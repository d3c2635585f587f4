// The member "pattern" of Split and Replace: {"String": text} or {"Regex": expression}.
#pragma once

#include <string_view>

#include "base/json.h"
#include "tokenizer/regex.h"

namespace whit {

Regex parse_pattern(const Json& json, std::string_view where);

}  // namespace whit
