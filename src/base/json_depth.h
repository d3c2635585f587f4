// How deep a JSON text is nested, ahead of parsing it: whoever copies or writes out a value
// recurses by its depth, and a text from outside must not decide how far.
#pragma once

#include <string_view>

namespace whit {

// Without recursion or a tree: by brackets outside of strings. What it says of a text that is not
// JSON holds for as much of it as a parser reads.
bool json_deeper_than(std::string_view text, int levels);

}  // namespace whit
