// libFuzzer: a chat template over a fixed conversation. Anything but an Error or a text is a bug;
// the segments must be the text.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/unicode.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const whit::ChatInput input = [] {
    whit::ChatInput result;
    result.messages = whit::Json::parse(
        R"([{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "a\nb é 世"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5]}}}]}])");
    result.tools =
        whit::Json::parse(R"([{"type": "function", "function": {"name": "f", "parameters": {}}}])");
    result.variables = whit::Json::parse(
        R"({"n": 3, "s": " text ", "l": [3, 1, 2], "d": {"b": 1, "a": null}, "t": true})");
    result.special_tokens["bos_token"] = "<s>";
    result.add_generation_prompt = true;
    result.now = 0;
    return result;
  }();
  const whit::ChatLimits limits{.steps = 200'000, .value_bytes = 1 << 24, .output_bytes = 1 << 20};
  try {
    const auto program =
        whit::ChatTemplate::parse({reinterpret_cast<const char*>(data), size}, "template");
    const std::string text = program.render(input, limits);
    if (whit::valid_utf8_prefix(text) != text.size()) std::abort();
    std::string joined;
    for (const auto& segment : program.render_segments(input, limits)) joined += segment.text;
    if (joined != text) std::abort();
  } catch (const whit::Error&) {
  }
  return 0;
}
