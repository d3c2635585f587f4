// Regular expressions as grammar expressions: the part of the common syntax that describes regular
// sets of texts. What it lacks is refused with its place (kInvalidArgument).
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "runtime/grammar/grammar.h"

namespace whit {

// How one character out of the given (sorted, disjoint) ranges is written in the text: as it is in
// UTF-8, or escaped within a JSON string.
using CharacterWriter =
    std::function<GrammarBuilder::Expr(const std::vector<CodePointRange>& ranges)>;

struct RegexText {
  GrammarBuilder::Expr body;
  bool anchored_begin = false, anchored_end = false;  // '^' and '$' were there
};

RegexText parse_regex(GrammarBuilder& builder, std::string_view pattern,
                      const CharacterWriter& write);

}  // namespace whit
