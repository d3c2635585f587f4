// libFuzzer target: a GGUF file of arbitrary bytes is either refused with an Error or safe to read
// as a model: every tensor, the config, the tokenizer.
#include <cstdint>
#include <memory>

#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/contents.h"
#include "checkpoint/gguf_tokenizer.h"

namespace {

template <typename Action>
void allow_errors(const Action& action) {
  try {
    action();
  } catch (const whit::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  allow_errors([&] {
    const auto file = std::make_shared<const whit::GgufFile>(std::span(data, size), "fuzz");
    allow_errors([&] { whit::tokenizer_json_from_gguf(*file); });
    allow_errors([&] { whit::tokenizer_config_from_gguf(*file); });
    const whit::Checkpoint checkpoint(whit::read_gguf(file));
    checkpoint.config().dump();
    for (const std::string& name : checkpoint.names())
      allow_errors([&] { checkpoint.load_f32(name); });
  });
  return 0;
}
