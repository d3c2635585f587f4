#include "server/fields.h"

#include <cmath>

#include "base/json_bounds.h"

namespace whit {
namespace {

// Half a second at most.
constexpr JsonBounds kBounds{.levels = 64, .comparisons = uint64_t{1} << 26};

}  // namespace

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) {
    size_t cut = 60;
    while (cut > 0 && (static_cast<uint8_t>(text[cut]) & 0xc0) == 0x80) --cut;
    text = text.substr(0, cut) + "…";
  }
  return text;
}

Json parse_body(std::string_view body) {
  if (const std::string excess = json_excess(body, kBounds); !excess.empty())
    throw ApiError(400, "invalid_request_error", fmt::format("the body {}", excess));
  Json result = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (result.is_discarded())
    throw ApiError(400, "invalid_request_error", "the body is not valid JSON");
  if (!result.is_object())
    throw ApiError(400, "invalid_request_error", "the body must be a JSON object");
  return result;
}

Json parse_inner(std::string_view text) {
  if (!json_excess(text, kBounds).empty()) return Json(Json::value_t::discarded);
  return Json::parse(text, nullptr, /*allow_exceptions=*/false);
}

const Json* Fields::find(std::string_view name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::boolean(std::string_view name, bool fallback) const {
  const Json* value = find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean())
    throw invalid_field(
        path(name), fmt::format("'{}' must be true or false, not {}", path(name), shown(*value)));
  return value->get<bool>();
}

std::optional<int64_t> whole_number(const Json& value, int64_t least, int64_t most) {
  int64_t result;
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    result = static_cast<int64_t>(number);
  } else if (value.is_number_integer()) {
    result = value.get<int64_t>();
  } else if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (!(std::fabs(number) < 9e15) || number != std::floor(number)) return std::nullopt;
    result = static_cast<int64_t>(number);
  } else {
    return std::nullopt;
  }
  if (result < least || result > most) return std::nullopt;
  return result;
}

std::optional<int64_t> Fields::integer(std::string_view name, int64_t least, int64_t most) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const std::optional<int64_t> result = whole_number(*value, least, most);
  if (!result)
    throw invalid_field(path(name), fmt::format("'{}' must be an integer from {} to {}, not {}",
                                                path(name), least, most, shown(*value)));
  return result;
}

std::optional<double> Fields::number(std::string_view name, double least, double most) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  const double result = value->is_number() ? value->get<double>() : NAN;
  if (!(result >= least && result <= most))
    throw invalid_field(path(name), fmt::format("'{}' must be a number from {} to {}, not {}",
                                                path(name), least, most, shown(*value)));
  return result;
}

std::optional<std::string> Fields::string(std::string_view name, size_t most_bytes) const {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string() || value->get_ref<const std::string&>().size() > most_bytes)
    throw invalid_field(path(name), fmt::format("'{}' must be a string of at most {} bytes, not {}",
                                                path(name), most_bytes, shown(*value)));
  return value->get<std::string>();
}

void Fields::refuse(std::string_view name, const Json& neutral, std::string_view why) const {
  const Json* value = find(name);
  if (value != nullptr && *value != neutral)
    throw invalid_field(path(name), fmt::format("'{}' is not supported: {}", path(name), why));
}

}  // namespace whit
