// libFuzzer target: what a model answers, in which calls of tools are looked for. The first byte
// says how long the pieces are in which it arrives. Arguments of calls are JSON objects, and a text
// without a call comes back whole.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/json.h"
#include "server/tool_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  const size_t piece = 1 + data[0] % 32;
  whit::ToolCallParser parser;
  std::string plain;
  size_t calls = 0;
  const auto take = [&](const whit::ToolCallParser::Found& found) {
    plain += found.text;
    calls += found.calls.size();
    for (const whit::ToolCall& call : found.calls)
      if (!whit::Json::accept(call.arguments)) std::abort();
  };
  for (size_t begin = 0; begin < text.size(); begin += piece)
    take(parser.push(text.substr(begin, piece)));
  take(parser.finish());
  if (calls == 0 && plain != text) std::abort();
  return 0;
}
