#include "tokenizer/bpe.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <limits>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

// Byte-level alphabets end at U+0143; characters below this bound are looked up in a table.
constexpr char32_t kDirectCharacters = 0x180;
// Positions in a piece are 32-bit.
constexpr size_t kMaxPieceBytes = size_t{1} << 30;

uint64_t hash_pair(uint64_t pair) {
  pair ^= pair >> 32;
  pair *= 0x9E3779B97F4A7C15u;  // 2⁶⁴ / golden ratio (Knuth, TAOCP vol. 3, §6.4)
  return pair ^ pair >> 29;
}

std::string shown(std::string_view token) {
  return std::string(token.size() > 60 ? token.substr(0, valid_utf8_prefix(token.substr(0, 60)))
                                       : token);
}

}  // namespace

void Vocabulary::reserve(size_t tokens, size_t bytes) {
  bytes_.reserve(bytes);
  entries_.reserve(tokens);
  slots_.assign(std::bit_ceil(std::max<size_t>(64, tokens * 2)), Slot());
}

size_t Vocabulary::find_slot(std::string_view token_text, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  const uint32_t tag = static_cast<uint32_t>(hash >> 32);
  size_t slot = hash & mask;
  while (slots_[slot].id >= 0 && (slots_[slot].hash != tag || token(slots_[slot].id) != token_text))
    slot = (slot + 1) & mask;
  return slot;
}

void Vocabulary::grow() {
  std::vector<Slot> old(std::max<size_t>(64, slots_.size() * 2));
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.id < 0) continue;
    const std::string_view text = token(slot.id);
    slots_[find_slot(text, XXH3_64bits(text.data(), text.size()))] = slot;
  }
}

void Vocabulary::add(std::string_view token_text, int64_t id, std::string_view where) {
  if (id < 0 || id > kMaxId)
    throw Error(ErrorKind::kInvalidData, "{}: token \"{}\" has id {}, outside 0 to {}", where,
                shown(token_text), id, kMaxId);
  if (bytes_.size() + token_text.size() > UINT32_MAX)
    throw Error(ErrorKind::kInvalidData, "{}: the vocabulary's strings exceed 4 GiB", where);
  if (contains(id))
    throw Error(ErrorKind::kInvalidData, "{}: tokens \"{}\" and \"{}\" both have id {}", where,
                shown(token(id)), shown(token_text), id);
  if ((size_ + 1) * 2 > slots_.size()) grow();
  const uint64_t hash = XXH3_64bits(token_text.data(), token_text.size());
  Slot& slot = slots_[find_slot(token_text, hash)];
  if (slot.id >= 0)
    throw Error(ErrorKind::kInvalidData, "{}: token \"{}\" has two ids, {} and {}", where,
                shown(token_text), slot.id, id);
  slot = {static_cast<uint32_t>(hash >> 32), static_cast<int32_t>(id)};
  if (static_cast<size_t>(id) >= entries_.size()) entries_.resize(static_cast<size_t>(id) + 1);
  entries_[static_cast<size_t>(id)] = {static_cast<uint32_t>(bytes_.size()),
                                       static_cast<uint32_t>(token_text.size()), true};
  bytes_ += token_text;
  ++size_;
}

std::optional<int32_t> Vocabulary::find(std::string_view token_text) const {
  if (slots_.empty()) return std::nullopt;
  const int32_t id =
      slots_[find_slot(token_text, XXH3_64bits(token_text.data(), token_text.size()))].id;
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

Bpe::Bpe(Vocabulary vocabulary, BpeOptions options, std::string_view where)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)) {
  if (options_.unk_token) {
    const auto unk = vocabulary_.find(*options_.unk_token);
    if (!unk)
      throw Error(ErrorKind::kInvalidData, "{}: unk_token \"{}\" is not in the vocabulary", where,
                  shown(*options_.unk_token));
    unk_id_ = *unk;
  }
  byte_ids_.assign(256, -1);
  for (int byte = 0; byte < 256; ++byte) {
    const auto id = vocabulary_.find(fmt::format("<0x{:02X}>", byte));
    if (id) byte_ids_[static_cast<size_t>(byte)] = *id;
  }
  character_ids_.assign(kDirectCharacters, -1);
  for (char32_t c = 0; c < kDirectCharacters; ++c) {
    std::string character;
    append_utf8(c, character);
    if (const auto id = vocabulary_.find(character)) character_ids_[c] = *id;
  }
}

std::optional<int32_t> Bpe::byte_token(uint8_t byte) const {
  const int32_t id = byte_ids_.empty() ? -1 : byte_ids_[byte];
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

void Bpe::insert_merge(const MergeSlot& merge) {
  const size_t mask = merges_.size() - 1;
  size_t slot = hash_pair(merge.pair) & mask;
  while (merges_[slot].pair != kNoPair && merges_[slot].pair != merge.pair)
    slot = (slot + 1) & mask;
  if (merges_[slot].pair == kNoPair) ++merge_count_;
  merges_[slot] = merge;
}

void Bpe::resize_merges(size_t slots) {
  std::vector<MergeSlot> old(slots);
  old.swap(merges_);
  merge_count_ = 0;
  for (const MergeSlot& merge : old)
    if (merge.pair != kNoPair) insert_merge(merge);
}

void Bpe::reserve_merges(size_t count) { resize_merges(std::bit_ceil(count * 2 + 1024)); }

void Bpe::add_merge(std::string_view left, std::string_view right, std::string_view where) {
  const uint32_t rank = next_rank_++;
  const auto resolve = [&](std::string_view token) {
    const auto id = vocabulary_.find(token);
    if (!id)
      throw Error(
          ErrorKind::kInvalidData,
          "{}: merge {} (\"{}\" + \"{}\") needs the token \"{}\", which is not in the vocabulary",
          where, rank, shown(left), shown(right), shown(token));
    return *id;
  };
  const auto left_id = resolve(left), right_id = resolve(right);
  if (!right.starts_with(options_.continuing_subword_prefix))
    throw Error(ErrorKind::kInvalidData,
                "{}: merge {}: \"{}\" lacks the continuing_subword_prefix \"{}\"", where, rank,
                shown(right), options_.continuing_subword_prefix);
  merged_.assign(left);
  merged_ += right.substr(options_.continuing_subword_prefix.size());
  if ((merge_count_ + 1) * 2 > merges_.size())
    resize_merges(std::max<size_t>(1024, merges_.size() * 2));
  // Trainers number results in the order of their merges; where that holds, the look-up is
  // sequential.
  const int32_t id = vocabulary_.token(expected_id_) == merged_ ? expected_id_ : resolve(merged_);
  expected_id_ = id + 1;
  insert_merge({static_cast<uint64_t>(left_id) << 32 | static_cast<uint32_t>(right_id), rank, id});
}

void Bpe::finish(std::vector<bool> is_special) {
  is_special_ = std::move(is_special);
  all_bytes_ = std::none_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id < 0; });
}

const Bpe::MergeSlot* Bpe::find_merge(int32_t left, int32_t right) const {
  if (merges_.empty()) return nullptr;
  const uint64_t pair = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
  const size_t mask = merges_.size() - 1;
  for (size_t slot = hash_pair(pair) & mask; merges_[slot].pair != kNoPair;
       slot = (slot + 1) & mask)
    if (merges_[slot].pair == pair) return &merges_[slot];
  return nullptr;
}

int32_t Bpe::character_id(std::string_view character, bool first) const {
  if (!first && !options_.continuing_subword_prefix.empty()) {
    const auto id = vocabulary_.find(options_.continuing_subword_prefix + std::string(character));
    return id ? *id : -1;
  }
  if (character.size() <= 2) {
    const char32_t c = code_point_at(character, 0).value;
    if (c < kDirectCharacters) return character_ids_[c];
  }
  const auto id = vocabulary_.find(character);
  return id ? *id : -1;
}

void Bpe::add_symbol(Workspace& workspace, int32_t id) const {
  const int32_t index = static_cast<int32_t>(workspace.symbols.size());
  if (index > 0) workspace.symbols.back().next = index;
  workspace.symbols.push_back({id, index - 1, -1, true});
}

void Bpe::initial_symbols(std::string_view piece, Workspace& workspace) const {
  bool pending_unk = false;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t length = code_point_at(piece, pos).bytes;
    const std::string_view character = piece.substr(pos, length);
    const int32_t id = character_id(character, pos == 0);
    pos += length;
    if (id >= 0) {
      if (pending_unk) add_symbol(workspace, unk_id_);
      pending_unk = false;
      add_symbol(workspace, id);
      continue;
    }
    if (options_.byte_fallback &&
        (all_bytes_ || std::all_of(character.begin(), character.end(), [&](char c) {
           return byte_ids_[static_cast<uint8_t>(c)] >= 0;
         }))) {
      // A pending unknown stays pending here, as in the reference implementation.
      for (const char c : character) add_symbol(workspace, byte_ids_[static_cast<uint8_t>(c)]);
      continue;
    }
    if (unk_id_ < 0) continue;  // without an unknown token, unknown characters vanish
    if (pending_unk && !options_.fuse_unk) add_symbol(workspace, unk_id_);
    pending_unk = true;
  }
  if (pending_unk) add_symbol(workspace, unk_id_);
}

void Bpe::encode(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const {
  if (piece.empty()) return;
  if (piece.size() > kMaxPieceBytes)
    throw Error(ErrorKind::kResource, "a piece of {} bytes is too long to tokenize (limit {})",
                piece.size(), kMaxPieceBytes);
  if (options_.ignore_merges) {
    const auto id = vocabulary_.find(piece);
    if (id &&
        !(static_cast<size_t>(*id) < is_special_.size() && is_special_[static_cast<size_t>(*id)])) {
      ids.push_back(*id);
      return;
    }
  }
  auto& symbols = workspace.symbols;
  auto& heap = workspace.heap;
  symbols.clear();
  heap.clear();
  initial_symbols(piece, workspace);

  // A min-heap on (rank, position).
  const auto later = [](const Workspace::Merge& a, const Workspace::Merge& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](int32_t left, int32_t right) -> bool {
    const MergeSlot* merge =
        find_merge(symbols[static_cast<size_t>(left)].id, symbols[static_cast<size_t>(right)].id);
    if (!merge) return false;
    heap.push_back({merge->rank, left, merge->id});
    return true;
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i)
    candidate(static_cast<int32_t>(i), static_cast<int32_t>(i + 1));
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    const Workspace::Merge top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    Workspace::Symbol& left = symbols[static_cast<size_t>(top.position)];
    if (!left.live || left.next < 0) continue;
    Workspace::Symbol& right = symbols[static_cast<size_t>(left.next)];
    const MergeSlot* merge = find_merge(left.id, right.id);
    if (!merge || merge->id != top.id) continue;  // an entry made stale by an earlier merge
    left.id = top.id;
    left.next = right.next;
    right.live = false;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    if (left.previous >= 0 && candidate(left.previous, top.position))
      std::push_heap(heap.begin(), heap.end(), later);
    if (left.next >= 0 && candidate(top.position, left.next))
      std::push_heap(heap.begin(), heap.end(), later);
  }
  for (const Workspace::Symbol& symbol : symbols)
    if (symbol.live) ids.push_back(symbol.id);
}

}  // namespace whit
