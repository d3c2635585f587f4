// Reads of a request's fields, each with its range: what is outside is refused with the field's
// name. A missing field and null are the same.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "server/api_error.h"

namespace whit {

// A request's body: one JSON object, at most 64 levels deep; of a repeated key the last counts.
// Throws ApiError.
Json parse_body(std::string_view body);

// A JSON value that is a text within a request or an answer. Discarded where it is not valid JSON,
// or nested deeper than a body may be.
Json parse_inner(std::string_view text);

class Fields {
 public:
  // `prefix` names the object in errors: "stream_options." or nothing.
  explicit Fields(const Json& object, std::string prefix = "")
      : object_(object), prefix_(std::move(prefix)) {}

  const Json* find(std::string_view name) const;  // null: missing
  std::string path(std::string_view name) const { return prefix_ + std::string(name); }

  bool boolean(std::string_view name, bool fallback) const;
  // A whole number (also written 3.0) within [least, most].
  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most) const;
  // A finite number within [least, most].
  std::optional<double> number(std::string_view name, double least, double most) const;
  std::optional<std::string> string(std::string_view name, size_t most_bytes) const;
  // For fields that are known and not supported: only null or `neutral` will do.
  void refuse(std::string_view name, const Json& neutral, std::string_view why) const;

 private:
  const Json& object_;
  std::string prefix_;
};

// A value as shown in messages: short.
std::string shown(const Json& value);

// The integer that `value` is, if it is one within [least, most].
std::optional<int64_t> whole_number(const Json& value, int64_t least, int64_t most);

}  // namespace whit
