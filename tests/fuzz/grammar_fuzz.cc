// libFuzzer: sources of grammars. The first byte chooses the kind: regular expression, EBNF, JSON
// schema. Anything but an Error or a grammar is a bug; so is an instance of a JSON schema that is
// no JSON.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/grammar/compile.h"
#include "runtime/grammar/matcher.h"

namespace {

// A tokenizer whose tokens are the 256 bytes, spelled with GPT-2's stand-ins.
std::shared_ptr<const whit::TokenTrie> byte_tokens() {
  whit::Json vocabulary = whit::Json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const int c = printable ? byte : next++;
    std::string symbol;
    if (c < 0x80) {
      symbol = static_cast<char>(c);
    } else {
      symbol += static_cast<char>(0xc0 | c >> 6);
      symbol += static_cast<char>(0x80 | (c & 63));
    }
    vocabulary[symbol] = byte;
  }
  const whit::Json byte_level = {{"type", "ByteLevel"},
                                 {"add_prefix_space", false},
                                 {"trim_offsets", true},
                                 {"use_regex", true}};
  const whit::Json json = {
      {"version", "1.0"},
      {"added_tokens", whit::Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", byte_level},
      {"post_processor", nullptr},
      {"decoder", byte_level},
      {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", whit::Json::array()}}}};
  return std::make_shared<const whit::TokenTrie>(
      whit::Tokenizer::from_json(json.dump(), "tokenizer.json"));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::shared_ptr<const whit::TokenTrie> tokens = byte_tokens();
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
