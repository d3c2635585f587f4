// Decoders of tokenizer.json: how token strings become text again.
//
// ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence; without a decoder tokens are
// joined by spaces, as Hugging Face does.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace whit {

class Decoder {
 public:
  Decoder() = default;
  // `json` is the member "decoder". Throws kInvalidData, kUnsupported.
  Decoder(const Json& json, std::string_view where);

  std::string decode(std::vector<std::string> tokens) const;

  // The bytes that `token` adds to a text; `first` says that it is the first token of the text.
  std::string token_bytes(std::string_view token, bool first) const;

  // Up to `count` times `character` is taken from the front of a whole text (a Strip after a Fuse).
  struct LeadingStrip {
    std::string character;
    size_t count = 0;
  };
  const LeadingStrip& leading_strip() const { return leading_strip_; }
  // Goes between the tokens of a text.
  std::string_view separator() const { return steps_.empty() ? " " : ""; }

 private:
  struct Step {
    std::function<void(std::vector<std::string>&)> decode;
    // Turns one token's bytes into what they add to the text; true: no later step may touch them.
    std::function<bool(std::string&, bool first)> token_bytes;
  };
  void add(const Json& json, std::string_view where);
  std::vector<Step> steps_;
  bool fused_ = false;
  LeadingStrip leading_strip_;
};

}  // namespace whit
