// Jinja tokens to a syntax tree: for, if, set, macro, call, filter, with, generation, break,
// continue, and the whole expression grammar. Inheritance and inclusion are refused: chat templates
// are single files.
#pragma once

#include <string_view>

#include "tokenizer/jinja/ast.h"

namespace whit::jinja {

// Throws kInvalidData (syntax), kUnsupported (a tag outside the subset), kResource (nesting, size).
Template parse_template(std::string_view source, std::string_view where);

}  // namespace whit::jinja
