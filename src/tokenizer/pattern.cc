#include "tokenizer/pattern.h"

namespace whit {

Regex parse_pattern(const Json& json, std::string_view where) {
  const auto found = json.find("pattern");
  if (found != json.end() && found->is_object() && found->size() == 1) {
    const std::string& kind = found->begin().key();
    const Json& text = found->begin().value();
    if (text.is_string() && kind == "Regex") return Regex(text.get<std::string>(), where);
    if (text.is_string() && kind == "String") return Regex::literal(text.get<std::string>(), where);
  }
  throw Error(ErrorKind::kInvalidData,
              "{}: \"pattern\" must be {{\"String\": text}} or {{\"Regex\": expression}}", where);
}

}  // namespace whit
