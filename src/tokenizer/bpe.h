// Byte-pair encoding (Sennrich et al., ACL 2016, §3.2): the vocabulary, the ranked merges, and the
// merge loop.
//
// A piece of pre-tokenized text becomes one symbol per character; the adjacent pair of lowest rank
// (leftmost first) merges until none is left. With a heap over a linked list this is O(n log n) in
// the piece's length. The order of merges, stale heap entries included, is that of Hugging Face
// tokenizers, so ids are identical.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

// Strings by id and ids by string. Ids may have holes; each id and each string occurs once.
class Vocabulary {
 public:
  // Ids above this are refused: no model has them, and a table of that size would have to be
  // allocated.
  static constexpr int64_t kMaxId = (int64_t{1} << 22) - 1;

  void reserve(size_t tokens, size_t bytes);
  // Throws kInvalidData naming `where` on a repeated token or id, or an id outside [0, kMaxId].
  void add(std::string_view token, int64_t id, std::string_view where);

  std::optional<int32_t> find(std::string_view token) const;
  bool contains(int64_t id) const {
    return id >= 0 && id < id_limit() && entries_[static_cast<size_t>(id)].present;
  }
  // Empty for ids that are not there.
  std::string_view token(int64_t id) const {
    if (!contains(id)) return {};
    const Entry& entry = entries_[static_cast<size_t>(id)];
    return std::string_view(bytes_).substr(entry.offset, entry.length);
  }
  int64_t id_limit() const { return static_cast<int64_t>(entries_.size()); }  // largest id + 1
  size_t size() const { return size_; }

 private:
  struct Entry {
    uint32_t offset = 0;
    uint32_t length = 0;
    bool present = false;
  };
  // Carries part of the hash, so that a lookup reads an entry only where it matches.
  struct Slot {
    uint32_t hash = 0;
    int32_t id = -1;  // −1: empty
  };
  void grow();
  // The slot of `token`, or the empty slot where it would go. Needs at least one empty slot.
  size_t find_slot(std::string_view token, uint64_t hash) const;

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;  // open addressing, power of two
  size_t size_ = 0;
};

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

class Bpe {
 public:
  Bpe() = default;
  Bpe(Vocabulary vocabulary, BpeOptions options, std::string_view where);

  void reserve_merges(size_t count);
  // The next merge in rank order. Throws kInvalidData if a part or the result is not in the
  // vocabulary.
  void add_merge(std::string_view left, std::string_view right, std::string_view where);
  // To be called after the last merge. Plain text never becomes a token that `is_special` marks,
  // not even by ignore_merges.
  void finish(std::vector<bool> is_special);

  // Buffers that encode() reuses between pieces.
  struct Workspace {
    struct Symbol {
      int32_t id;
      int32_t previous, next;  // −1: none
      bool live;
    };
    struct Merge {
      uint32_t rank;
      int32_t position;
      int32_t id;
    };
    std::vector<Symbol> symbols;
    std::vector<Merge> heap;
  };

  // Appends the ids of `piece` (valid UTF-8) to `ids`.
  void encode(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  std::optional<int32_t> byte_token(uint8_t byte) const;

 private:
  struct MergeSlot {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  void add_symbol(Workspace& workspace, int32_t id) const;
  void initial_symbols(std::string_view piece, Workspace& workspace) const;
  int32_t character_id(std::string_view character, bool first) const;
  const MergeSlot* find_merge(int32_t left, int32_t right) const;
  void insert_merge(const MergeSlot& merge);
  void resize_merges(size_t slots);

  Vocabulary vocabulary_;
  BpeOptions options_;
  int32_t unk_id_ = -1;
  std::vector<int32_t> byte_ids_;  // 256 entries, −1: no <0xXX> token
  bool all_bytes_ = false;
  std::vector<int32_t> character_ids_;  // ids of the first code points, −1: none
  std::vector<MergeSlot> merges_;       // open addressing, power of two
  size_t merge_count_ = 0;
  uint32_t next_rank_ = 0;
  std::string merged_;       // add_merge's buffer
  int32_t expected_id_ = 0;  // of the next merge's result, if trainers' order holds
  std::vector<bool> is_special_;
};

}  // namespace whit
