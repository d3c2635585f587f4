// A vocabulary's tokens by their bytes, in the order of a depth-first walk: who meets a byte that
// cannot follow skips all tokens that go on from it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace whit {

class TokenTrie {
 public:
  struct Node {
    uint8_t byte;
    uint16_t depth;        // 1 for a token's first byte
    uint32_t end;          // index of the first node that does not go on from this one
    uint32_t first, last;  // in the list of ids: tokens that end here
  };

  // Special tokens, and those without bytes, are in none of the texts that a grammar describes.
  explicit TokenTrie(const Tokenizer& tokenizer);

  std::span<const Node> nodes() const { return nodes_; }
  std::span<const int32_t> tokens_at(const Node& node) const {
    return std::span(ids_).subspan(node.first, node.last - node.first);
  }
  int64_t vocab_size() const { return static_cast<int64_t>(starts_.size()) - 1; }
  int max_depth() const { return max_depth_; }
  // Empty for special tokens.
  std::span<const uint8_t> bytes(int32_t id) const;

 private:
  std::vector<Node> nodes_;
  std::vector<int32_t> ids_;
  std::vector<uint8_t> bytes_;
  std::vector<uint32_t> starts_;  // of each token in bytes_
  int max_depth_ = 0;
};

}  // namespace whit
