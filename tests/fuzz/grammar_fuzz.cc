// libFuzzer: sources of grammars. The first byte chooses the kind: regular expression, EBNF, JSON
// schema. Anything but an Error or a grammar is a bug; so is an instance of a JSON schema that is
// no JSON.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "fuzz/support.h"
#include "runtime/grammar/compile.h"
#include "runtime/grammar/matcher.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto tokens = std::make_shared<const whit::TokenTrie>(
      whit::Tokenizer::from_json(whit::fuzz::byte_tokenizer().dump(), "tokenizer.json"));
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    std::shared_ptr<const whit::Grammar> grammar;
    bool json = false;
    if (data[0] % 3 == 0) {
      grammar = whit::compile_regex(text, tokens);
    } else if (data[0] % 3 == 1) {
      grammar = whit::compile_ebnf(text, tokens);
    } else {
      const whit::Json schema = whit::Json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (schema.is_discarded()) return 0;
      grammar = whit::compile_json_schema(schema, tokens);
      json = true;
    }
    whit::GrammarMatcher matcher(grammar);
    std::string written;
    uint32_t random = static_cast<uint32_t>(size) + data[0];
    for (int i = 0; i < 200 && !matcher.must_end(); ++i) {
      const std::span<const uint64_t> allowed = matcher.allowed();
      std::vector<int32_t> ids;
      for (int32_t id = 0; id < 256; ++id)
        if (allowed[id / 64] >> (id % 64) & 1) ids.push_back(id);
      if (ids.empty()) break;  // nested as deep as is allowed
      random = random * 1664525u + 1013904223u;
      const int32_t id = ids[(random >> 8) % ids.size()];
      matcher.accept(id);
      written += static_cast<char>(id);
    }
    if (json && matcher.must_end() && !whit::Json::accept(written)) std::abort();
  } catch (const whit::Error&) {
  }
  return 0;
}
