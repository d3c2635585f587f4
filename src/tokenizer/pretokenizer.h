// Pre-tokenizers of tokenizer.json: they cut normalized text into the pieces that BPE merges
// within.
//
// Sequence, Split, Digits, ByteLevel, Metaspace, Whitespace, WhitespaceSplit, Punctuation,
// CharDelimiterSplit, BertPreTokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace whit {

// A text and the pieces that it is cut into, in order. A piece is either text still to be tokenized
// (token < 0) or an added token that was found in the text.
struct Pieces {
  struct Piece {
    uint32_t begin, end;  // in buffer
    int32_t token = -1;
    bool at_start = false;  // the piece begins where the original text begins
  };
  static constexpr size_t kMaxBytes = size_t{1} << 31;  // offsets are 32-bit

  std::string buffer;
  std::vector<Piece> list;

  std::string_view text(const Piece& piece) const {
    return std::string_view(buffer).substr(piece.begin, piece.end - piece.begin);
  }
};

class PreTokenizer {
 public:
  PreTokenizer() = default;
  // `json` is the member "pre_tokenizer" (null: no cuts). Throws kInvalidData, kUnsupported.
  PreTokenizer(const Json& json, std::string_view where);

  void apply(Pieces& pieces) const;

 private:
  void add(const Json& json, std::string_view where);
  std::vector<std::function<void(Pieces&)>> steps_;
};

}  // namespace whit
