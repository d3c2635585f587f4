#include "runtime/grammar/token_trie.h"

#include <algorithm>
#include <numeric>

namespace whit {
namespace {

// Longer tokens (runs of spaces, at most) are left out: a walk's path stays short.
constexpr size_t kMaxTokenBytes = 256;

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer) {
  const auto vocab = static_cast<int32_t>(tokenizer.vocab_size());
  starts_.push_back(0);
  for (int32_t id = 0; id < vocab; ++id) {
    const std::string text = tokenizer.is_special(id) ? "" : tokenizer.token_bytes(id);
    if (text.size() <= kMaxTokenBytes) bytes_.insert(bytes_.end(), text.begin(), text.end());
    starts_.push_back(static_cast<uint32_t>(bytes_.size()));
  }
  for (int32_t id = 0; id < vocab; ++id)
    if (!bytes(id).empty()) ids_.push_back(id);
  std::sort(ids_.begin(), ids_.end(), [&](int32_t a, int32_t b) {
    const auto x = bytes(a), y = bytes(b);
    return std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end());
  });

  std::vector<uint32_t> path;  // nodes from the first byte to the last token's end
  for (uint32_t i = 0; i < ids_.size(); ++i) {
    const std::span<const uint8_t> text = bytes(ids_[i]);
    size_t common = 0;
    while (common < path.size() && common < text.size() &&
           nodes_[path[common]].byte == text[common])
      ++common;
    for (size_t depth = common; depth < path.size(); ++depth)
      nodes_[path[depth]].end = static_cast<uint32_t>(nodes_.size());
    path.resize(common);
    while (path.size() < text.size()) {
      path.push_back(static_cast<uint32_t>(nodes_.size()));
      nodes_.push_back({text[path.size() - 1], static_cast<uint16_t>(path.size()), 0, i, i});
    }
    ++nodes_[path.back()].last;
    max_depth_ = std::max(max_depth_, static_cast<int>(text.size()));
  }
  for (const uint32_t node : path) nodes_[node].end = static_cast<uint32_t>(nodes_.size());
}

std::span<const uint8_t> TokenTrie::bytes(int32_t id) const {
  return std::span(bytes_).subspan(starts_[id], starts_[id + 1] - starts_[id]);
}

}  // namespace whit
