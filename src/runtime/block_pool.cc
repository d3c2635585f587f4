#include "runtime/block_pool.h"

#include <xxhash.h>

#include <algorithm>

#include "base/error.h"

namespace whit {

BlockPool::BlockPool(int64_t pages, int64_t page_tokens, uint64_t hash_seed)
    : page_tokens_(page_tokens), hash_seed_(hash_seed), pages_(pages) {
  for (PageId id = 0; id < pages; ++id) pages_[id].place = unused_.insert(unused_.end(), id);
}

uint64_t BlockPool::hash_of(uint64_t previous, std::span<const int32_t> tokens,
                            std::string_view salt) const {
  uint64_t seed = hash_seed_ + previous * 0x9e3779b97f4a7c15u;
  if (previous == 0) seed = XXH3_64bits_withSeed(salt.data(), salt.size(), seed);
  return XXH3_64bits_withSeed(tokens.data(), tokens.size_bytes(), seed);
}

PageId BlockPool::find(uint64_t previous, std::span<const int32_t> tokens,
                       std::string_view salt) const {
  const auto [begin, end] = index_.equal_range(hash_of(previous, tokens, salt));
  for (auto it = begin; it != end; ++it) {
    const Page& page = pages_[it->second];
    if (page.previous == previous && std::ranges::equal(page.tokens, tokens) &&
        (previous != 0 || page.salt == salt))
      return it->second;
  }
  return -1;
}

void BlockPool::forget(Page& page, PageId id) {
  if (page.identity == 0) return;
  const auto [begin, end] = index_.equal_range(page.hash);
  for (auto it = begin; it != end; ++it)
    if (it->second == id) {
      index_.erase(it);
      break;
    }
  page.identity = 0;
}

std::optional<PageId> BlockPool::allocate() {
  if (unused_.empty()) return std::nullopt;
  const PageId id = unused_.front();
  unused_.pop_front();
  forget(pages_[id], id);
  pages_[id].holders = 1;
  return id;
}

void BlockPool::hold(PageId id) {
  Page& page = pages_[id];
  if (page.holders++ == 0) unused_.erase(page.place);
}

void BlockPool::release(PageId id) {
  Page& page = pages_[id];
  WHIT_DCHECK(page.holders > 0);
  if (--page.holders > 0) return;
  page.place = unused_.insert(page.identity == 0 ? unused_.begin() : unused_.end(), id);
}

std::vector<PageId> BlockPool::find_prefix(std::span<const int32_t> tokens, std::string_view salt,
                                           int64_t max_pages) {
  std::vector<PageId> found;
  uint64_t previous = 0;
  while (static_cast<int64_t>(found.size()) < max_pages &&
         static_cast<int64_t>(tokens.size()) >= page_tokens_) {
    const PageId id = find(previous, tokens.first(page_tokens_), salt);
    if (id < 0) break;
    hold(id);
    found.push_back(id);
    previous = pages_[id].identity;
    tokens = tokens.subspan(page_tokens_);
  }
  return found;
}

PageId BlockPool::publish(PageId id, PageId previous, std::span<const int32_t> tokens,
                          std::string_view salt) {
  WHIT_DCHECK(static_cast<int64_t>(tokens.size()) == page_tokens_);
  Page& page = pages_[id];
  if (page.identity != 0) return id;
  const uint64_t before = previous < 0 ? 0 : pages_[previous].identity;
  WHIT_DCHECK(previous < 0 || before != 0);
  if (const PageId other = find(before, tokens, salt); other >= 0) {
    hold(other);
    release(id);
    return other;
  }
  page.identity = next_identity_++;
  page.previous = before;
  page.tokens.assign(tokens.begin(), tokens.end());
  page.salt = before == 0 ? std::string(salt) : std::string();
  page.hash = hash_of(before, tokens, salt);
  index_.emplace(page.hash, id);
  return id;
}

void BlockPool::forget_unused() {
  for (const PageId id : unused_) forget(pages_[id], id);
}

}  // namespace whit
