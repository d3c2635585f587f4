// libFuzzer: a tokenizer.json and a text. The input is "JSON \0 text"; without a NUL a fixed
// tokenizer reads the text. What loads must encode, decode and stream anything without a crash, and
// the three must agree.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace {

constexpr std::string_view kTokenizer = R"({
  "added_tokens": [{"id": 10, "content": "<s>", "special": true, "normalized": false, "lstrip": true},
                   {"id": 11, "content": "<t>", "special": true, "normalized": true, "rstrip": true},
                   {"id": 12, "content": "aa", "single_word": true}],
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"},
    {"type": "Prepend", "prepend": "x"}, {"type": "Replace", "pattern": {"Regex": "b+"}, "content": "b"}]},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
    {"type": "Punctuation", "behavior": "MergedWithNext"}, {"type": "ByteLevel", "add_prefix_space": true}]},
  "decoder": {"type": "ByteLevel"},
  "model": {"type": "BPE", "unk_token": "u", "vocab": {"u": 0, "a": 1, "b": 2, "ab": 3, "aba": 4, "Ġ": 5, "Ġa": 6, "Ã": 7},
    "merges": ["a b", "ab a", "Ġ a"]}})";

void check(const whit::Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  for (const int32_t id : ids)
    if (id < 0 || id >= tokenizer.vocab_size()) std::abort();
  const std::string whole = tokenizer.decode(ids, false);
  if (whit::valid_utf8_prefix(whole) != whole.size()) std::abort();
  whit::StreamDecoder stream(tokenizer, false);
  std::string streamed;
  for (const int32_t id : ids) streamed += stream.push(id);
  streamed += stream.flush();
  if (whit::valid_utf8_prefix(streamed) != streamed.size()) std::abort();
  const size_t middle = text.size() / 2;
  const std::vector<whit::TextSegment> segments = {{std::string(text.substr(0, middle)), false},
                                                   {std::string(text.substr(middle)), true}};
  tokenizer.encode(segments, {.add_special_tokens = true});
  tokenizer.encode(text, {.parse_special = false});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  try {
    if (end == std::string_view::npos) {
      static const whit::Tokenizer fixed = whit::Tokenizer::from_json(kTokenizer, "fixed");
      check(fixed, input);
    } else {
      check(whit::Tokenizer::from_json(input.substr(0, end), "input"), input.substr(end + 1));
    }
  } catch (const whit::Error&) {
  }
  return 0;
}
