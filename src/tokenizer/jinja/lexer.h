// Jinja source to tokens, with the white-space rules of transformers' environment: trim_blocks,
// lstrip_blocks, no trailing newline kept, `-` and `+` beside delimiters, {% raw %} (Jinja 3.1
// documentation, "Whitespace Control").
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace whit::jinja {

enum class TokenType {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type;
  int line;
  std::string text;  // data, name, operator, or the value of a string
  int64_t integer = 0;
  double real = 0;
};

// Throws kInvalidData naming `where` and the line.
std::vector<Token> tokenize(std::string_view source, std::string_view where);

}  // namespace whit::jinja
