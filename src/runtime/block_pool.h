// The pages of a paged KV cache: who holds each of them, and which tokens' keys and values it has.
//
// A page has any number of holders. A full page can be published: from then on it is found by the
// tokens that it and the pages before it were computed from, also after its last holder has
// released it, until the page is needed for something else (least recently released first).
//
// A find is exact. Each published page has an identity that is never used again; it is found by
// (identity of the page before it, its tokens), all of them compared, and a first page by its
// tenant's salt as well. A hash only leads to the candidates, so a collision costs time and never
// shows one request the keys and values of another's text. A request with a salt shares pages only
// with requests of the same salt.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace whit {

using PageId = int32_t;

class BlockPool {
 public:
  // `hash_seed` keeps a client from constructing prompts that all collide.
  BlockPool(int64_t pages, int64_t page_tokens, uint64_t hash_seed = 0);

  int64_t size() const { return static_cast<int64_t>(pages_.size()); }
  int64_t page_tokens() const { return page_tokens_; }
  // Pages without a holder: allocate() succeeds that often.
  int64_t available() const { return static_cast<int64_t>(unused_.size()); }
  int64_t in_use() const { return size() - available(); }
  int64_t published() const { return static_cast<int64_t>(index_.size()); }

  // A page with one holder, its old content forgotten; nothing where all have holders.
  std::optional<PageId> allocate();
  void hold(PageId page);     // one holder more
  void release(PageId page);  // one holder less
  int64_t holders(PageId page) const { return pages_[page].holders; }

  // The published pages that hold the first tokens, at most `max_pages`; each has one holder more.
  std::vector<PageId> find_prefix(std::span<const int32_t> tokens, std::string_view salt,
                                  int64_t max_pages);

  // Makes `page` findable. It holds the keys and values of exactly page_tokens() `tokens`, computed
  // after those of `previous` (a published page, or -1 for a first one). Where another page is
  // published for the same tokens, that one gets a holder more and is returned, and `page` loses
  // one: the two have the same content. Otherwise returns `page`.
  PageId publish(PageId page, PageId previous, std::span<const int32_t> tokens,
                 std::string_view salt);
  bool is_published(PageId page) const { return pages_[page].identity != 0; }

  // Forgets what pages without a holder contain.
  void forget_unused();

 private:
  struct Page {
    int64_t holders = 0;
    uint64_t identity = 0;  // 0: not published
    uint64_t previous = 0;  // identity of the page before it; 0 for a first one
    uint64_t hash = 0;
    std::vector<int32_t> tokens;
    std::string salt;                   // of a first page
    std::list<PageId>::iterator place;  // in unused_, where there is no holder
  };

  uint64_t hash_of(uint64_t previous, std::span<const int32_t> tokens, std::string_view salt) const;
  PageId find(uint64_t previous, std::span<const int32_t> tokens, std::string_view salt) const;
  void forget(Page& page, PageId id);

  int64_t page_tokens_;
  uint64_t hash_seed_;
  uint64_t next_identity_ = 1;
  std::vector<Page> pages_;
  // Without a holder, next to be used first. Those never published, or forgotten, come first.
  std::list<PageId> unused_;
  std::unordered_multimap<uint64_t, PageId> index_;  // published pages by hash
};

}  // namespace whit
