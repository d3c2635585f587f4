#include "base/json_bounds.h"

#include <fmt/format.h>

#include <cstddef>
#include <vector>

namespace whit {

std::string json_excess(std::string_view text, const JsonBounds& bounds) {
  constexpr size_t kKeyBytes = 64;  // that one comparison of equal beginnings covers at that price
  std::vector<uint64_t> members;    // of the open objects and arrays
  uint64_t comparisons = 0;
  size_t string_begin = 0, string_bytes = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') {
      if (in_string)
        string_bytes = i - string_begin;
      else
        string_begin = i;
      in_string = !in_string;
    } else if (in_string) {
      if (c == '\\') ++i;
    } else if (c == '{' || c == '[') {
      members.push_back(0);
      if (members.size() > static_cast<size_t>(bounds.levels))
        return fmt::format("is nested deeper than {} levels", bounds.levels);
    } else if (c == '}' || c == ']') {
      if (members.empty()) return "";  // no JSON: a parser stops here
      members.pop_back();
    } else if (c == ':' && !members.empty()) {
      comparisons += members.back()++ * (1 + string_bytes / kKeyBytes);
      if (comparisons > bounds.comparisons)
        return fmt::format("has too many members in one object ({} where it was given up)",
                           members.back());
    }
  }
  return "";
}

}  // namespace whit
