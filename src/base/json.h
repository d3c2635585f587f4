// JSON from files and requests: parsing with limits, and reads that name the place of what is
// wrong.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace whit {

using Json = nlohmann::ordered_json;

// Parses `text`; throws kInvalidData naming `where` (a path) on syntax errors, depth over 128, or
// duplicate-free violations that nlohmann reports.
Json parse_json(std::string_view text, std::string_view where);

// object[key] as T. Missing or null: throws kNotFound. Wrong type, fraction for an integer, out of
// T's range: kInvalidData. T in {bool, int64_t, double, std::string}.
template <typename T>
T json_get(const Json& object, std::string_view key, std::string_view where);

// As above, with `fallback` for a missing or null key.
template <typename T>
T json_get_or(const Json& object, std::string_view key, T fallback, std::string_view where);

}  // namespace whit
