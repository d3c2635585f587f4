// Added tokens: strings that are found in text before anything else happens to it, special tokens
// among them.
//
// Tokens with normalized = false are searched for in the raw text, the others in the normalized
// text; leftmost, then longest. single_word, lstrip and rstrip have Hugging Face's meaning. A
// special token is not recognized where any of its bytes is marked (came from a user), so content
// cannot forge structure.
#pragma once

#include <bitset>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tokenizer/normalizer.h"

namespace whit {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool normalized = true;
  bool lstrip = false, rstrip = false;
  bool single_word = false;
};

// The member "added_tokens" (null: none). Throws kInvalidData.
std::vector<AddedToken> parse_added_tokens(const Json& json, std::string_view where);

enum class SpecialTokens { kParse, kPlainText };

class AddedTokenFinder {
 public:
  struct Found {
    size_t begin, end;
    int32_t token;  // −1: text between tokens
  };

  // `pattern_of[i]` is what to look for where tokens[i] is meant.
  AddedTokenFinder() = default;
  AddedTokenFinder(std::vector<AddedToken> tokens, const std::vector<std::string>& patterns);

  bool empty() const { return tokens_.empty(); }
  // Cuts `text` into tokens and the text between them (never empty).
  void find(const MarkedText& text, SpecialTokens special, std::vector<Found>& found) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> children;  // sorted
    int32_t token = -1;                                  // index in tokens_
  };
  std::optional<uint32_t> child(uint32_t node, uint8_t byte) const;
  // Longest token at `begin` that the marks allow; its end goes to `end`.
  const AddedToken* longest_at(const MarkedText& text, size_t begin, size_t& end) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::bitset<256> first_bytes_;
};

}  // namespace whit
