// Normalizers of tokenizer.json: what happens to text before it is split.
//
// NFC, NFD, NFKC, NFKD (UAX #15), Lowercase, Replace, Prepend, Strip, StripAccents, ByteLevel,
// Sequence. The text may carry a mark per byte that says "came from a user"; a normalizer moves
// marks with the bytes, and whatever is made from a marked byte is marked.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace whit {

struct MarkedText {
  std::string text;  // valid UTF-8
  std::string
      marks;  // empty (nothing is marked), or one byte per byte of text: 1 = marked, 0 = not
};

class Normalizer {
 public:
  Normalizer();
  // `json` is the member "normalizer" (null: identity). Throws kInvalidData, kUnsupported.
  Normalizer(const Json& json, std::string_view where);
  ~Normalizer();
  Normalizer(Normalizer&&) noexcept;
  Normalizer& operator=(Normalizer&&) noexcept;

  bool is_identity() const { return steps_.empty(); }
  void apply(MarkedText& text) const;

 private:
  struct Step;
  void add(const Json& json, std::string_view where);
  std::vector<std::unique_ptr<Step>> steps_;
};

}  // namespace whit
