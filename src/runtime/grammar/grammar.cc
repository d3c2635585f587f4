#include "runtime/grammar/grammar.h"

#include <algorithm>

#include "base/error.h"
#include "runtime/grammar/automaton.h"

namespace whit {
namespace {

constexpr uint32_t kLastCodePoint = 0x10ffff;

std::string utf8(uint32_t c) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | ((c >> shift) & 0x3f)); };
  if (c < 0x80) return {static_cast<char>(c)};
  if (c < 0x800) return {static_cast<char>(0xc0 | c >> 6), tail(0)};
  if (c < 0x10000) return {static_cast<char>(0xe0 | c >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xf0 | c >> 18), tail(12), tail(6), tail(0)};
}

// Splits a range of code points into products of byte ranges: where the last n bytes take all of
// their values, they are independent of the bytes before.
void split_range(uint32_t first, uint32_t last,
                 std::vector<std::vector<std::pair<uint8_t, uint8_t>>>& out) {
  for (const uint32_t border : {0x7fu, 0x7ffu, 0xffffu})
    if (first <= border && border < last) {
      split_range(first, border, out);
      split_range(border + 1, last, out);
      return;
    }
  for (int bits = 6; bits <= 18 && last >= 0x80; bits += 6) {
    const uint32_t mask = (1u << bits) - 1;
    if ((first & ~mask) == (last & ~mask)) continue;
    if ((first & mask) != 0) {
      split_range(first, first | mask, out);
      split_range((first | mask) + 1, last, out);
      return;
    }
    if ((last & mask) != mask) {
      split_range(first, (last & ~mask) - 1, out);
      split_range(last & ~mask, last, out);
      return;
    }
  }
  const std::string a = utf8(first), b = utf8(last);
  std::vector<std::pair<uint8_t, uint8_t>> ranges;
  for (size_t i = 0; i < a.size(); ++i)
    ranges.emplace_back(static_cast<uint8_t>(a[i]), static_cast<uint8_t>(b[i]));
  out.push_back(std::move(ranges));
}

}  // namespace

Grammar::Grammar(std::unique_ptr<GrammarAutomaton> automaton) : automaton_(std::move(automaton)) {}
Grammar::~Grammar() = default;

GrammarBuilder::Expr GrammarBuilder::add(Node node) {
  if (static_cast<int64_t>(nodes_.size()) >= kMaxExpressions)
    throw Error(ErrorKind::kResource, "the grammar has more than {} parts; simplify it",
                kMaxExpressions);
  nodes_.push_back(std::move(node));
  return static_cast<Expr>(nodes_.size()) - 1;
}

GrammarBuilder::Expr GrammarBuilder::empty() { return sequence({}); }
GrammarBuilder::Expr GrammarBuilder::never() { return add({.kind = Kind::kNever}); }

GrammarBuilder::Expr GrammarBuilder::byte_set(const std::bitset<256>& bytes) {
  if (bytes.none()) return never();
  return add({.kind = Kind::kBytes, .bytes = bytes});
}

GrammarBuilder::Expr GrammarBuilder::literal(std::string_view bytes) {
  std::vector<Expr> parts;
  for (const char c : bytes) {
    std::bitset<256> set;
    set.set(static_cast<uint8_t>(c));
    parts.push_back(byte_set(set));
  }
  return sequence(std::move(parts));
}

GrammarBuilder::Expr GrammarBuilder::code_points(std::span<const CodePointRange> ranges) {
  std::vector<std::vector<std::pair<uint8_t, uint8_t>>> products;
  std::bitset<256> ascii;
  for (const CodePointRange& range : ranges) {
    const uint32_t last = std::min(range.last, kLastCodePoint);
    const auto add_part = [&](uint32_t from, uint32_t to) {
      if (from <= to) split_range(from, to, products);
    };
    add_part(range.first, std::min(last, 0xd7ffu));
    add_part(std::max(range.first, 0xe000u), last);
  }
  std::vector<Expr> options;
  for (const auto& product : products) {
    if (product.size() == 1) {
      for (int byte = product[0].first; byte <= product[0].second; ++byte) ascii.set(byte);
      continue;
    }
    std::vector<Expr> parts;
    for (const auto& [from, to] : product) {
      std::bitset<256> set;
      for (int byte = from; byte <= to; ++byte) set.set(byte);
      parts.push_back(byte_set(set));
    }
    options.push_back(sequence(std::move(parts)));
  }
  if (ascii.any()) options.push_back(byte_set(ascii));
  return choice(std::move(options));
}

GrammarBuilder::Expr GrammarBuilder::sequence(std::vector<Expr> parts) {
  if (parts.size() == 1) return parts[0];
  return add({.kind = Kind::kSequence, .parts = std::move(parts)});
}

GrammarBuilder::Expr GrammarBuilder::choice(std::vector<Expr> options) {
  if (options.size() == 1) return options[0];
  if (options.empty()) return never();
  return add({.kind = Kind::kChoice, .parts = std::move(options)});
}

GrammarBuilder::Expr GrammarBuilder::repeat(Expr part, int64_t min, int64_t max) {
  if (min == 1 && max == 1) return part;
  return add({.kind = Kind::kRepeat, .parts = {part}, .min = min, .max = max});
}

GrammarBuilder::Rule GrammarBuilder::add_rule(std::string name) {
  rules_.push_back({.name = std::move(name)});
  return static_cast<Rule>(rules_.size()) - 1;
}

void GrammarBuilder::define(Rule rule, Expr body) { rules_[rule].body = body; }

GrammarBuilder::Expr GrammarBuilder::call(Rule rule) {
  return add({.kind = Kind::kCall, .rule = rule});
}

bool GrammarBuilder::productive(Expr expr) const {
  const Node& node = nodes_[expr];
  const auto part = [&](Expr each) { return productive(each); };
  switch (node.kind) {
    case Kind::kNever:
      return false;
    case Kind::kBytes:
      return true;
    case Kind::kSequence:
      return std::all_of(node.parts.begin(), node.parts.end(), part);
    case Kind::kChoice:
      return std::any_of(node.parts.begin(), node.parts.end(), part);
    case Kind::kRepeat:
      return (node.max < 0 || node.max >= node.min) && (node.min == 0 || part(node.parts[0]));
    default:
      return rules_[node.rule].productive;
  }
}

bool GrammarBuilder::nullable(Expr expr) const {
  const Node& node = nodes_[expr];
  const auto part = [&](Expr each) { return nullable(each); };
  switch (node.kind) {
    case Kind::kSequence:
      return std::all_of(node.parts.begin(), node.parts.end(), part);
    case Kind::kChoice:
      return std::any_of(node.parts.begin(), node.parts.end(), part);
    case Kind::kRepeat:
      return node.min == 0 || part(node.parts[0]);
    case Kind::kCall:
      return rules_[node.rule].nullable;
    default:
      return false;
  }
}

void GrammarBuilder::analyse() {
  for (const RuleInfo& rule : rules_)
    if (rule.body < 0)
      throw Error(ErrorKind::kInvalidArgument, "the grammar's rule \"{}\" is not defined",
                  rule.name);
  int64_t rounds = 0;
  for (bool changed = true; changed;) {
    changed = false;
    if (++rounds * std::ssize(nodes_) > 20 * kMaxExpressions)
      throw Error(ErrorKind::kResource, "the grammar's rules are nested too deep; simplify it");
    for (RuleInfo& rule : rules_) {
      if (!rule.productive && productive(rule.body)) changed = rule.productive = true;
      if (!rule.nullable && nullable(rule.body)) changed = rule.nullable = true;
    }
  }
}

// Rules that may be called before any byte. False result of nullable() ends a sequence.
void GrammarBuilder::first_calls(Expr expr, std::vector<Rule>& calls) const {
  const Node& node = nodes_[expr];
  if (node.kind == Kind::kCall) calls.push_back(node.rule);
  for (const Expr part : node.parts) {
    first_calls(part, calls);
    if (node.kind == Kind::kSequence && !nullable(part)) break;
  }
}

void GrammarBuilder::refuse_left_recursion() const {
  std::vector<int> state(rules_.size(), 0);  // 1: being walked, 2: done
  struct Frame {
    Rule rule;
    std::vector<Rule> calls;
  };
  for (Rule first = 0; first < std::ssize(rules_); ++first) {
    if (state[first] != 0) continue;
    std::vector<Frame> path;
    const auto enter = [&](Rule rule) {
      state[rule] = 1;
      path.push_back({rule, {}});
      first_calls(rules_[rule].body, path.back().calls);
    };
    enter(first);
    while (!path.empty()) {
      Frame& frame = path.back();
      if (frame.calls.empty()) {
        state[frame.rule] = 2;
        path.pop_back();
        continue;
      }
      const Rule next = frame.calls.back();
      frame.calls.pop_back();
      if (state[next] == 1)
        throw Error(ErrorKind::kInvalidArgument,
                    "the grammar's rule \"{}\" begins with itself; write it with repetition",
                    rules_[next].name);
      if (state[next] == 0) enter(next);
    }
  }
}

// Thompson's construction for one rule after another.
struct GrammarBuilder::Compilation {
  const GrammarBuilder& builder;
  std::vector<GrammarState> states = {};
  std::vector<int32_t> entries = {};  // of each rule
  int64_t steps = 0;

  int32_t add_state() {
    if (std::ssize(states) >= kMaxStates)
      throw Error(ErrorKind::kResource,
                  "the grammar needs more than {} states; use smaller repetitions", kMaxStates);
    states.emplace_back();
    return static_cast<int32_t>(states.size()) - 1;
  }

  // Appends what leads from `from` through `expr`; returns where it ends.
  int32_t compile(Expr expr, int32_t from) {
    // Repetitions of nothing need no states, but time.
    if (++steps > 10 * kMaxStates)
      throw Error(ErrorKind::kResource, "the grammar repeats too much; use smaller repetitions");
    const Node& node = builder.nodes_[expr];
    switch (node.kind) {
      case Kind::kBytes: {
        const int32_t to = add_state();
        for (int byte = 0; byte < 256; ++byte) {
          if (!node.bytes[byte]) continue;
          int last = byte;
          while (last < 255 && node.bytes[last + 1]) ++last;
          states[from].edges.push_back(
              {static_cast<uint8_t>(byte), static_cast<uint8_t>(last), to});
          byte = last;
        }
        return to;
      }
      case Kind::kSequence:
        for (const Expr part : node.parts) from = compile(part, from);
        return from;
      case Kind::kChoice: {
        const int32_t to = add_state();
        for (const Expr part : node.parts) {
          if (!builder.productive(part)) continue;
          const int32_t begin = add_state();
          states[from].silent.push_back(begin);
          const int32_t end = compile(part, begin);
          states[end].silent.push_back(to);
        }
        return to;
      }
      case Kind::kRepeat:
        return compile_repeat(node, from);
      case Kind::kCall: {
        const int32_t to = add_state();
        states[from].calls.push_back({entries[node.rule], to});
        return to;
      }
      default:
        return add_state();  // cannot be reached
    }
  }

  int32_t compile_repeat(const Node& node, int32_t from) {
    const Expr part = node.parts[0];
    for (int64_t i = 0; i < node.min; ++i) from = compile(part, from);
    if (!builder.productive(part)) return from;
    if (node.max < 0) {
      const int32_t loop = add_state();
      states[from].silent.push_back(loop);
      const int32_t begin = add_state();
      states[loop].silent.push_back(begin);
      const int32_t end = compile(part, begin);
      states[end].silent.push_back(loop);
      const int32_t to = add_state();
      states[loop].silent.push_back(to);
      return to;
    }
    if (node.max == node.min) return from;
    const int32_t to = add_state();
    for (int64_t i = node.min; i < node.max; ++i) {
      states[from].silent.push_back(to);
      const int32_t begin = add_state();
      states[from].silent.push_back(begin);
      from = compile(part, begin);
    }
    states[from].silent.push_back(to);
    return to;
  }
};

std::shared_ptr<const Grammar> GrammarBuilder::build(Rule root,
                                                     std::shared_ptr<const TokenTrie> tokens) {
  analyse();
  if (!rules_[root].productive) throw Error(ErrorKind::kInvalidArgument, "no text can satisfy it");
  refuse_left_recursion();
  Compilation compilation{*this};
  for (size_t rule = 0; rule < rules_.size(); ++rule)
    compilation.entries.push_back(compilation.add_state());
  for (size_t rule = 0; rule < rules_.size(); ++rule) {
    if (!rules_[rule].productive) continue;
    const int32_t begin = compilation.entries[rule];
    const int32_t end = compilation.compile(rules_[rule].body, begin);
    compilation.states[end].final = true;
  }
  auto automaton = std::make_unique<GrammarAutomaton>(std::move(compilation.states),
                                                      compilation.entries[root], std::move(tokens));
  // A grammar whose first tokens already cost too much is refused here rather than in the engine.
  automaton->allowed(automaton->start());
  return std::make_shared<const Grammar>(std::move(automaton));
}

}  // namespace whit
