// What a JSON text would cost beyond its length, ahead of parsing it. Whoever copies or writes out
// a value recurses by its depth. And an ordered object compares each new key with those before it,
// so that a megabyte of short keys in one object takes half a minute. A text from outside must
// decide neither.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace whit {

struct JsonBounds {
  int levels;            // of nesting
  uint64_t comparisons;  // of keys, of all objects together; about 7 ns each
};

// Which bound `text` passes, as the end of a sentence ("is nested deeper than 64 levels"); empty
// where it passes none. Without recursion or a tree: by brackets, strings and colons. What it says
// of a text that is not JSON holds for as much of it as a parser reads.
std::string json_excess(std::string_view text, const JsonBounds& bounds);

}  // namespace whit
