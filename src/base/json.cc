#include "base/json.h"

#include <cmath>

#include "base/json_bounds.h"

namespace whit {
namespace {

// Of files: an object of 40 thousand members, which takes some seconds, is still read.
constexpr JsonBounds kBounds{.levels = 128, .comparisons = uint64_t{1} << 30};
constexpr size_t kShownBytes = 400;

template <typename T>
T convert(const Json& value, std::string_view key, std::string_view where);

[[noreturn]] void throw_type(const Json& value, std::string_view key, std::string_view where,
                             const char* wanted) {
  std::string shown = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (shown.size() > 60) shown = shown.substr(0, 60) + "…";
  throw Error(ErrorKind::kInvalidData, "{}: \"{}\" must be {}, got {}", where, key, wanted, shown);
}

template <>
bool convert<bool>(const Json& value, std::string_view key, std::string_view where) {
  if (!value.is_boolean()) throw_type(value, key, where, "true or false");
  return value.get<bool>();
}

template <>
int64_t convert<int64_t>(const Json& value, std::string_view key, std::string_view where) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX)
    throw_type(value, key, where, "an integer below 2^63");
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (number == std::floor(number) && std::fabs(number) < 9e15)
      return static_cast<int64_t>(number);
  }
  throw_type(value, key, where, "an integer");
}

template <>
double convert<double>(const Json& value, std::string_view key, std::string_view where) {
  if (!value.is_number()) throw_type(value, key, where, "a number");
  return value.get<double>();
}

template <>
std::string convert<std::string>(const Json& value, std::string_view key, std::string_view where) {
  if (!value.is_string()) throw_type(value, key, where, "a string");
  return value.get<std::string>();
}

}  // namespace

Json parse_json(std::string_view text, std::string_view where) {
  // Ahead of parsing: the parser's own callback, which could tell the depth too, makes it look at
  // all members of an object again whenever a value inside of it ends.
  if (const std::string excess = json_excess(text, kBounds); !excess.empty())
    throw Error(ErrorKind::kInvalidData, "{}: the JSON {}", where, excess);
  try {
    return Json::parse(text);
  } catch (const Json::exception& error) {
    // It quotes the token that it was reading, which may be the whole file.
    std::string why = error.what();
    if (why.size() > kShownBytes) {
      size_t cut = kShownBytes;
      while (cut > 0 && (static_cast<unsigned char>(why[cut]) & 0xc0) == 0x80) --cut;
      why = why.substr(0, cut) + "…";
    }
    throw Error(ErrorKind::kInvalidData, "{}: not valid JSON: {}", where, why);
  }
}

template <typename T>
T json_get(const Json& object, std::string_view key, std::string_view where) {
  if (!object.is_object())
    throw Error(ErrorKind::kInvalidData, "{}: expected an object with \"{}\"", where, key);
  const auto found = object.find(key);
  if (found == object.end() || found->is_null())
    throw Error(ErrorKind::kNotFound, "{}: \"{}\" is missing", where, key);
  return convert<T>(*found, key, where);
}

template <typename T>
T json_get_or(const Json& object, std::string_view key, T fallback, std::string_view where) {
  if (!object.is_object())
    throw Error(ErrorKind::kInvalidData, "{}: expected an object with \"{}\"", where, key);
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return fallback;
  return convert<T>(*found, key, where);
}

template bool json_get(const Json&, std::string_view, std::string_view);
template int64_t json_get(const Json&, std::string_view, std::string_view);
template double json_get(const Json&, std::string_view, std::string_view);
template std::string json_get(const Json&, std::string_view, std::string_view);
template bool json_get_or(const Json&, std::string_view, bool, std::string_view);
template int64_t json_get_or(const Json&, std::string_view, int64_t, std::string_view);
template double json_get_or(const Json&, std::string_view, double, std::string_view);
template std::string json_get_or(const Json&, std::string_view, std::string, std::string_view);

}  // namespace whit
