// What the word in tokenizer.ggml.pre stands for: how text is cut before byte-level BPE.
#pragma once

#include <string_view>
#include <vector>

#include "base/json.h"
#include "checkpoint/gguf.h"

namespace whit {

enum class Digits { kTogether, kIndividual };
enum class Lookup { kMerges, kWholeWordFirst };  // kWholeWordFirst: "ignore_merges"
enum class Normalizer { kNone, kNfc };

struct PreTokenizer {
  std::string_view name;
  std::vector<std::string_view> splits;  // empty: ByteLevel's own expression, which is GPT-2's
  Digits digits = Digits::kTogether;
  Lookup lookup = Lookup::kMerges;
  Normalizer normalizer = Normalizer::kNone;
  bool adds_bos = false;  // where tokenizer.ggml.add_bos_token is absent
};

// By tokenizer.ggml.pre; where a file has none, by its architecture. Throws kUnsupported naming an
// unknown word.
const PreTokenizer& pre_tokenizer_of(const GgufFile& file);

// The "pre_tokenizer" of tokenizer.json.
Json pre_tokenizer_json(const PreTokenizer& pre);

}  // namespace whit
