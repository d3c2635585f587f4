#include "tokenizer/added_tokens.h"

#include <algorithm>

#include "tokenizer/regex.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

constexpr size_t kMaxContentBytes = 4096;

bool is_word_character(std::string_view character) {
  const char32_t c = code_point_at(character, 0).value;
  if (c < 0x80) return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '_';
  static const Regex regex("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]", "single_word");
  Regex::Scratch scratch;
  return regex.matches_at_start(character, scratch);
}

// Start of the character that ends at `end` > 0.
size_t previous_character(std::string_view text, size_t end) {
  size_t start = end - 1;
  while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  return start;
}

bool is_whole_word(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word_character(text.substr(previous_character(text, begin)))) return false;
  return end == text.size() || !is_word_character(text.substr(end));
}

}  // namespace

std::vector<AddedToken> parse_added_tokens(const Json& json, std::string_view where) {
  std::vector<AddedToken> tokens;
  if (json.is_null()) return tokens;
  if (!json.is_array())
    throw Error(ErrorKind::kInvalidData, "{}: \"added_tokens\" must be a list", where);
  for (const Json& entry : json) {
    AddedToken token;
    token.content = json_get<std::string>(entry, "content", where);
    const int64_t id = json_get<int64_t>(entry, "id", where);
    if (id < 0 || id > INT32_MAX)
      throw Error(ErrorKind::kInvalidData, "{}: added token \"{}\" has id {}", where, token.content,
                  id);
    if (token.content.size() > kMaxContentBytes)
      throw Error(ErrorKind::kInvalidData, "{}: the added token with id {} has {} bytes (limit {})",
                  where, id, token.content.size(), kMaxContentBytes);
    token.id = static_cast<int32_t>(id);
    token.special = json_get_or<bool>(entry, "special", false, where);
    token.normalized = json_get_or<bool>(entry, "normalized", !token.special, where);
    token.lstrip = json_get_or<bool>(entry, "lstrip", false, where);
    token.rstrip = json_get_or<bool>(entry, "rstrip", false, where);
    token.single_word = json_get_or<bool>(entry, "single_word", false, where);
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens,
                                   const std::vector<std::string>& patterns)
    : tokens_(std::move(tokens)), nodes_(1) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& pattern = patterns[i];
    if (pattern.empty()) continue;  // nothing of it is left to be found
    uint32_t node = 0;
    for (const char c : pattern) {
      const uint8_t byte = static_cast<uint8_t>(c);
      if (const auto next = child(node, byte)) {
        node = *next;
        continue;
      }
      const uint32_t next = static_cast<uint32_t>(nodes_.size());
      auto& children = nodes_[node].children;
      children.insert(
          std::lower_bound(children.begin(), children.end(), std::pair{byte, uint32_t{0}}),
          {byte, next});
      nodes_.emplace_back();
      node = next;
    }
    nodes_[node].token = static_cast<int32_t>(i);
    first_bytes_.set(static_cast<uint8_t>(pattern[0]));
  }
}

std::optional<uint32_t> AddedTokenFinder::child(uint32_t node, uint8_t byte) const {
  const auto& children = nodes_[node].children;
  const auto found =
      std::lower_bound(children.begin(), children.end(), std::pair{byte, uint32_t{0}});
  if (found == children.end() || found->first != byte) return std::nullopt;
  return found->second;
}

const AddedToken* AddedTokenFinder::longest_at(const MarkedText& text, size_t begin,
                                               size_t& end) const {
  const AddedToken* longest = nullptr;
  bool marked = false;
  uint32_t node = 0;
  for (size_t pos = begin; pos < text.text.size(); ++pos) {
    const auto next = child(node, static_cast<uint8_t>(text.text[pos]));
    if (!next) break;
    node = *next;
    marked |= !text.marks.empty() && text.marks[pos] != 0;
    if (nodes_[node].token < 0) continue;
    const AddedToken& token = tokens_[static_cast<size_t>(nodes_[node].token)];
    if (token.special && marked) continue;
    longest = &token;
    end = pos + 1;
  }
  return longest;
}

void AddedTokenFinder::find(const MarkedText& marked_text, SpecialTokens special,
                            std::vector<Found>& found) const {
  found.clear();
  const std::string_view text = marked_text.text;
  size_t covered = 0;  // text before this is in `found`
  for (size_t pos = 0; !tokens_.empty() && pos < text.size();) {
    if (!first_bytes_[static_cast<uint8_t>(text[pos])]) {
      ++pos;
      continue;
    }
    size_t end = 0;
    const AddedToken* token = longest_at(marked_text, pos, end);
    if (!token) {
      ++pos;
      continue;
    }
    size_t begin = pos;
    pos = end;  // a match that is turned down below is passed over, not searched again
    if (token->special && special == SpecialTokens::kPlainText) continue;
    if (token->single_word && !is_whole_word(text, begin, end)) continue;
    while (token->lstrip && begin > covered) {
      const size_t start = previous_character(text, begin);
      if (start < covered || !is_whitespace(code_point_at(text, start).value)) break;
      begin = start;
    }
    while (token->rstrip && end < text.size()) {
      const CodePoint c = code_point_at(text, end);
      if (!is_whitespace(c.value)) break;
      end += c.bytes;
    }
    if (covered < begin) found.push_back({covered, begin, -1});
    found.push_back({begin, std::max(begin, end), token->id});
    covered = std::max(covered, end);
  }
  if (covered < text.size()) found.push_back({covered, text.size(), -1});
}

}  // namespace whit
