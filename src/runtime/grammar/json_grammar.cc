#include "runtime/grammar/json_grammar.h"

#include <algorithm>

#include "base/error.h"

namespace whit {
namespace {

std::bitset<256> set_of(std::string_view bytes) {
  std::bitset<256> set;
  for (const char c : bytes) set.set(static_cast<uint8_t>(c));
  return set;
}

}  // namespace

JsonGrammar::JsonGrammar() {
  space_ = rule("space", [&] {
    const std::bitset<256> blanks = set_of(" \t");
    return builder.choice({builder.empty(), builder.literal(" "),
                           builder.sequence({builder.literal("\n"),
                                             builder.repeat(builder.byte_set(blanks), 0, 20)})});
  });
  character_ = rule("character", [&] { return write_escaped({{0, 0x10ffff}}); });
}

JsonGrammar::Expr JsonGrammar::as_rule(const std::string& name, Expr expr) {
  const Rule id = builder.add_rule(name);
  builder.define(id, expr);
  return builder.call(id);
}

JsonGrammar::Expr JsonGrammar::write_escaped(const std::vector<CodePointRange>& ranges) {
  std::vector<CodePointRange> plain;
  std::vector<Expr> options;
  const auto contains = [&](uint32_t c) {
    return std::any_of(ranges.begin(), ranges.end(),
                       [&](const CodePointRange& r) { return r.first <= c && c <= r.last; });
  };
  uint32_t next = 0x20;
  for (const uint32_t special : {uint32_t{'"'}, uint32_t{'\\'}, uint32_t{0x7f}, 0x10ffffu}) {
    for (const CodePointRange& range : ranges) {
      const uint32_t first = std::max(range.first, next),
                     last = std::min(range.last, special == 0x10ffff ? special : special - 1);
      if (first <= last) plain.push_back({first, last});
    }
    next = special + 1;
  }
  if (!plain.empty()) options.push_back(builder.code_points(plain));
  static constexpr std::pair<char, const char*> kShort[] = {
      {'"', "\\\""}, {'\\', "\\\\"}, {'\n', "\\n"}, {'\t', "\\t"},
      {'\r', "\\r"}, {'\b', "\\b"},  {'\f', "\\f"}};
  for (const auto& [c, escape] : kShort)
    if (contains(static_cast<uint8_t>(c))) options.push_back(builder.literal(escape));
  for (uint32_t c = 0; c < 0x20; ++c)
    if (contains(c) &&
        std::string_view("\b\t\n\f\r").find(static_cast<char>(c)) == std::string_view::npos)
      options.push_back(builder.literal(fmt::format("\\u{:04x}", c)));
  if (contains(0x7f)) options.push_back(builder.literal("\\u007f"));
  return builder.choice(std::move(options));
}

JsonGrammar::Expr JsonGrammar::characters(int64_t least, int64_t most) {
  return builder.repeat(builder.call(character_), least, most);
}

JsonGrammar::Expr JsonGrammar::any_string() {
  if (any_string_ < 0) any_string_ = rule("string", [&] { return quoted(characters(0, -1)); });
  return builder.call(any_string_);
}

JsonGrammar::Expr JsonGrammar::digits(int least, int most) {
  return builder.repeat(builder.byte_set(set_of("0123456789")), least, most);
}

JsonGrammar::Expr JsonGrammar::natural() {
  return builder.choice({token("0"), builder.sequence({builder.byte_set(set_of("123456789")),
                                                       digits(0, kMaxDigits - 1)})});
}

JsonGrammar::Expr JsonGrammar::fraction() {
  return builder.sequence(
      {token("."), digits(0, kMaxDigits - 1), builder.byte_set(set_of("123456789"))});
}

JsonGrammar::Expr JsonGrammar::any_integer() {
  return builder.sequence({builder.optional(token("-")), natural()});
}

JsonGrammar::Expr JsonGrammar::any_number() {
  return builder.sequence({builder.optional(token("-")), natural(),
                           builder.optional(builder.sequence({token("."), digits(1, kMaxDigits)})),
                           builder.optional(builder.sequence(
                               {builder.byte_set(set_of("eE")),
                                builder.optional(builder.byte_set(set_of("+-"))), digits(1, 2)}))});
}

JsonGrammar::Expr JsonGrammar::any_value() {
  if (any_value_ < 0) {
    any_value_ = builder.add_rule("value");
    const Expr self = builder.call(any_value_);
    builder.define(any_value_,
                   builder.choice({any_object(), list_of(self, {}, 0, -1), any_string(),
                                   any_number(), token("true"), token("false"), token("null")}));
  }
  return builder.call(any_value_);
}

JsonGrammar::Expr JsonGrammar::object_of(Expr key, Expr value) {
  const Expr member = as_rule("member", builder.sequence({key, token(":"), space(), value}));
  const Expr more = builder.repeat(builder.sequence({token(","), space(), member}), 0, -1);
  return builder.sequence({token("{"), space(),
                           builder.optional(builder.sequence({member, more, space()})),
                           token("}")});
}

JsonGrammar::Expr JsonGrammar::list_of(Expr item, const std::vector<Expr>& first, int64_t min,
                                       int64_t max) {
  const Expr comma = builder.sequence({token(","), space()});
  std::vector<Expr> parts = {token("["), space()};
  const auto given = static_cast<int64_t>(first.size());
  for (int64_t i = 0; i < given; ++i) {
    if (i > 0) parts.push_back(comma);
    parts.push_back(first[i]);
  }
  const Expr next = as_rule("item", builder.sequence({comma, item}));
  const int64_t least = std::max<int64_t>(0, min - given);
  const int64_t most = max < 0 ? -1 : max - given;
  if (most < -1 || (most >= 0 && most < least)) return builder.never();
  if (given > 0) {
    parts.push_back(builder.repeat(next, least, most));
  } else if (most != 0) {
    const Expr list = builder.sequence(
        {item, builder.repeat(next, std::max<int64_t>(0, least - 1), most < 0 ? -1 : most - 1)});
    parts.push_back(least == 0 ? builder.optional(list) : list);
  }
  parts.push_back(space());
  parts.push_back(token("]"));
  return builder.sequence(std::move(parts));
}

JsonGrammar::Expr JsonGrammar::any_object() {
  if (any_object_ < 0) {
    any_object_ = builder.add_rule("object");
    builder.define(any_object_, object_of(any_string(), any_value()));
  }
  return builder.call(any_object_);
}

JsonGrammar::Expr JsonGrammar::digits_between(const std::string& least, const std::string& most) {
  if (least.empty()) return builder.empty();
  const auto digit_set = [&](char from, char to) {
    std::bitset<256> set;
    for (char c = from; c <= to; ++c) set.set(static_cast<uint8_t>(c));
    return builder.byte_set(set);
  };
  const int rest = static_cast<int>(least.size()) - 1;
  const std::string low = least.substr(1), high = most.substr(1);
  if (least[0] == most[0])
    return builder.sequence({digit_set(least[0], least[0]), digits_between(low, high)});
  std::vector<Expr> options = {builder.sequence({digit_set(least[0], least[0]),
                                                 digits_between(low, std::string(rest, '9'))}),
                               builder.sequence({digit_set(most[0], most[0]),
                                                 digits_between(std::string(rest, '0'), high)})};
  if (least[0] + 1 < most[0])
    options.push_back(builder.sequence(
        {digit_set(static_cast<char>(least[0] + 1), static_cast<char>(most[0] - 1)),
         digits(rest, rest)}));
  return builder.choice(std::move(options));
}

JsonGrammar::Expr JsonGrammar::naturals(int64_t least, int64_t most) {
  std::vector<Expr> options;
  while (least <= most) {
    const std::string low = std::to_string(least);
    std::string high = std::string(low.size(), '9');
    const bool last = std::to_string(most).size() == low.size();
    if (last) high = std::to_string(most);
    options.push_back(digits_between(low, high));
    if (last) break;
    least = std::stoll(high) + 1;
  }
  return builder.choice(std::move(options));
}

}  // namespace whit
