#include "runtime/grammar/automaton.h"

#include <algorithm>

#include "base/error.h"

namespace whit {
namespace {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t pair_key(int32_t a, int32_t b) {
  return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
}

}  // namespace

GrammarAutomaton::GrammarAutomaton(std::vector<GrammarState> states, int32_t start,
                                   std::shared_ptr<const TokenTrie> tokens)
    : states_(std::move(states)), start_(start), tokens_(std::move(tokens)) {
  stacks_.push_back({-1, -1, 0});
  for (const GrammarState& state : states_)
    bytes_ += static_cast<int64_t>(sizeof(GrammarState) +
                                   state.edges.size() * sizeof(GrammarState::Edge) +
                                   state.silent.size() * 4 + state.calls.size() * 8);
}

void GrammarAutomaton::count_work(int64_t items) {
  work_ += items;
  if (work_ > kMaxWork)
    throw Error(ErrorKind::kResource,
                "the grammar is too ambiguous: following it takes too long; simplify it");
  if (bytes_ > kMaxBytes)
    throw Error(ErrorKind::kResource, "following the grammar takes more than {} MB; simplify it",
                kMaxBytes >> 20);
}

int32_t GrammarAutomaton::push(int32_t target, int32_t parent) {
  const auto [found, is_new] =
      stack_index_.try_emplace(pair_key(target, parent), static_cast<int32_t>(stacks_.size()));
  if (is_new) {
    stacks_.push_back({target, parent, stacks_[parent].depth + 1});
    bytes_ += 48;
  }
  return found->second;
}

// Fills kept_ and ends_ with all that `work` leads to without a byte.
void GrammarAutomaton::close(std::vector<Item>& work) {
  kept_.clear();
  ends_ = false;
  closed_.clear();
  std::unordered_map<uint64_t, bool> seen;
  const auto add = [&](int32_t state, int32_t stack) {
    if (!seen.try_emplace(pair_key(state, stack), true).second) return;
    work.push_back({state, stack});
  };
  for (std::vector<Item> first = std::exchange(work, {}); const Item& item : first)
    add(item.state, item.stack);
  while (!work.empty()) {
    const Item item = work.back();
    work.pop_back();
    count_work(1);
    const GrammarState& state = states_[item.state];
    if (!state.edges.empty()) kept_.push_back(item);
    for (const int32_t target : state.silent) add(target, item.stack);
    for (const GrammarState::Call& call : state.calls) {
      const GrammarState& back = states_[call.target];
      // Nothing is left to do in this rule: it need not be returned to.
      const bool tail =
          back.final && back.edges.empty() && back.silent.empty() && back.calls.empty();
      // A text that would nest deeper is not allowed.
      if (tail)
        add(call.entry, item.stack);
      else if (stacks_[item.stack].depth < kMaxDepth)
        add(call.entry, push(call.target, item.stack));
    }
    if (state.final) {
      if (item.stack == 0)
        ends_ = true;
      else
        add(stacks_[item.stack].target, stacks_[item.stack].parent);
    }
    if (kept_.size() > kMaxItems)
      throw Error(ErrorKind::kResource,
                  "the grammar is too ambiguous: a text can be read in more than {} ways",
                  kMaxItems);
  }
  std::sort(kept_.begin(), kept_.end());
}

// The number of the configuration in kept_ and ends_.
GrammarAutomaton::Config GrammarAutomaton::intern() {
  if (kept_.empty() && !ends_) return kDead;
  uint64_t hash = ends_;
  for (const Item& item : kept_) hash = mix(hash ^ pair_key(item.state, item.stack)) + 1;
  const auto [begin, end] = config_index_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const Entry& entry = *configs_[it->second];
    if (entry.may_end == ends_ && entry.items == kept_) return it->second;
  }
  const auto id = static_cast<Config>(configs_.size());
  auto entry = std::make_unique<Entry>();
  entry->items = kept_;
  entry->may_end = ends_;
  bytes_ += static_cast<int64_t>(sizeof(Entry) + kept_.size() * sizeof(Item)) + 64;
  configs_.push_back(std::move(entry));
  config_index_.emplace(hash, id);
  return id;
}

GrammarAutomaton::Config GrammarAutomaton::step(Config config, uint8_t byte) {
  if (config == kDead) return kDead;
  Entry& entry = *configs_[config];
  if (entry.next.empty()) {
    entry.next.assign(256, kUnknown);
    bytes_ += 256 * sizeof(Config);
  }
  Config& next = entry.next[byte];
  if (next != kUnknown) return next;
  count_work(static_cast<int64_t>(entry.items.size()));
  std::vector<Item> targets;
  for (const Item& item : entry.items)
    for (const GrammarState::Edge& edge : states_[item.state].edges)
      if (edge.first <= byte && byte <= edge.last) targets.push_back({edge.target, item.stack});
  close(targets);
  const Config result = intern();  // entries stay where they are: `next` is still valid
  next = result;
  return result;
}

GrammarAutomaton::Config GrammarAutomaton::start() {
  std::lock_guard lock(mutex_);
  work_ = 0;
  if (start_config_ == kUnknown) {
    std::vector<Item> work = {{start_, 0}};
    close(work);
    start_config_ = intern();
  }
  return start_config_;
}

GrammarAutomaton::Config GrammarAutomaton::after(Config config, std::span<const uint8_t> bytes) {
  std::lock_guard lock(mutex_);
  work_ = 0;
  for (const uint8_t byte : bytes) config = step(config, byte);
  return config;
}

bool GrammarAutomaton::may_end(Config config) {
  std::lock_guard lock(mutex_);
  return config != kDead && configs_[config]->may_end;
}

bool GrammarAutomaton::must_end(Config config) {
  std::lock_guard lock(mutex_);
  return config != kDead && configs_[config]->may_end && configs_[config]->items.empty();
}

std::span<const uint64_t> GrammarAutomaton::allowed(Config config) {
  std::lock_guard lock(mutex_);
  work_ = 0;
  if (config == kDead) return {};
  Entry& entry = *configs_[config];
  if (entry.allowed != nullptr) return *entry.allowed;
  std::vector<uint64_t> mask((tokens_->vocab_size() + 63) / 64, 0);
  std::vector<Config> path(tokens_->max_depth() + 1);
  path[0] = config;
  const std::span<const TokenTrie::Node> nodes = tokens_->nodes();
  for (size_t i = 0; i < nodes.size();) {
    const TokenTrie::Node& node = nodes[i];
    const Config reached = step(path[node.depth - 1], node.byte);
    if (reached == kDead) {
      i = node.end;
      continue;
    }
    path[node.depth] = reached;
    for (const int32_t id : tokens_->tokens_at(node)) mask[id / 64] |= uint64_t{1} << (id % 64);
    ++i;
  }
  uint64_t hash = 0;
  for (const uint64_t bits : mask) hash = mix(hash ^ bits) + 1;
  const auto [begin, end] = masks_.equal_range(hash);
  auto found = std::find_if(begin, end, [&](const auto& other) { return other.second == mask; });
  if (found == end) {
    bytes_ += static_cast<int64_t>(mask.size() * 8) + 64;
    found = masks_.emplace(hash, std::move(mask));
  }
  entry.allowed = &found->second;
  return *entry.allowed;
}

int64_t GrammarAutomaton::bytes() {
  std::lock_guard lock(mutex_);
  return bytes_;
}

}  // namespace whit
