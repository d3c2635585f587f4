// The filters.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <optional>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

using Run = Interpreter;

// ── text ──

Value filter_string(Run& run, Value value, const Arguments&) {
  return Value::of(&run.to_text(value));
}

template <Case to>
Value filter_case(Run& run, Value value, const Arguments&) {
  const Text& text = run.to_text(value);
  run.scanned(text.size());
  return run.make(change_case(text, to));
}

Value filter_trim(Run& run, Value value, const Arguments& arguments) {
  const Value* characters = arguments.find(0, "chars");
  const Text* set = nullptr;
  if (characters && !characters->is_none()) set = &run.text_argument(arguments, 0, "chars");
  const Text& text = run.to_text(value);
  run.scanned(text.size() * (1 + (set ? set->size() : 0) / 16));
  return run.make(strip(text, set, kBoth));
}

Value filter_replace(Run& run, Value value, const Arguments& arguments) {
  const Value *from = arguments.find(0, "old"), *to = arguments.find(1, "new");
  if (!from || !to) run.fail("replace needs what to replace and by what");
  Arguments texts{{Value::of(&run.to_text(*from)), Value::of(&run.to_text(*to))}, {}};
  if (const Value* count = arguments.find(2, "count"); count && !count->is_none())
    texts.positional.push_back(*count);
  return find_method(Type::kString, "replace")(run, Value::of(&run.to_text(value)), texts);
}

Value filter_safe(Run& run, Value value, const Arguments&) {
  Text text = run.to_text(value);
  text.markup = true;
  return run.make(std::move(text));
}

template <bool force>
Value filter_escape(Run& run, Value value, const Arguments&) {
  const Text& text = run.to_text(value);
  if (text.markup && !force) return value;
  run.scanned(text.size());
  TextBuilder out;
  append_escaped(text, out);
  Text escaped = out.take();
  escaped.markup = true;
  return run.make(std::move(escaped));
}

Value filter_indent(Run& run, Value value, const Arguments& arguments) {
  Text indent("    ");
  if (const Value* width = arguments.find(0, "width")) {
    if (width->is_string()) {
      indent = *width->text;
    } else {
      const int64_t count = std::max<int64_t>(0, run.integer_argument(arguments, 0, "width", 4));
      if (count > 10'000) run.fail(ErrorKind::kResource, "indent: more than 10000 columns");
      indent = Text(std::string(static_cast<size_t>(count), ' '));
    }
  }
  const bool first = run.bool_argument(arguments, 1, "first", false);
  const bool blank = run.bool_argument(arguments, 2, "blank", false);
  TextBuilder source;
  source.append(run.to_text(value));
  source.append("\n");
  TextBuilder out;
  bool at_first = true;
  for (const Text& line : split_lines(source.text(), false)) {
    run.charge(indent.size());
    if (!at_first) out.append("\n");
    if (at_first ? first : blank || !line.bytes.empty()) out.append(indent);
    out.append(line);
    at_first = false;
  }
  return run.make(out.take());
}

Value filter_format(Run& run, Value value, const Arguments& arguments) {
  return format_percent(run, run.to_text(value), run.make_list(arguments.positional, Type::kTuple));
}

Value filter_wordcount(Run& run, Value value, const Arguments&) {
  const Text& text = run.to_text(value);
  run.scanned(text.size());
  return Value::of(static_cast<int64_t>(split_spaces(text, -1).size()));
}

Value filter_tojson(Run& run, Value value, const Arguments& arguments) {
  JsonStyle style;
  style.ensure_ascii = run.bool_argument(arguments, 0, "ensure_ascii", false);
  if (const Value* indent = arguments.find(1, "indent"); indent && !indent->is_none()) {
    style.indented = true;
    style.item_separator.assign(1, ',');
    if (indent->is_string()) {
      style.indent = indent->text->bytes;
    } else {
      const int64_t width = run.integer_argument(arguments, 1, "indent", 0);
      if (width > 1000) run.fail(ErrorKind::kResource, "tojson: an indent above 1000");
      style.indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    }
  }
  if (const Value* separators = arguments.find(2, "separators");
      separators && !separators->is_none()) {
    const std::vector<Value> pair = run.iterate(*separators);
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      run.fail("tojson: separators must be two strings");
    style.item_separator = pair[0].text->bytes;
    style.key_separator = pair[1].text->bytes;
  }
  style.sort_keys = run.bool_argument(arguments, 3, "sort_keys", false);
  TextBuilder out;
  append_json(run, value, style, out);
  return run.make(out.take());
}

// ── numbers ──

// The number that the whole of `text` is, as Python's int() and float() read it.
std::optional<double> parse_float(std::string text) {
  text = strip(Text(text), nullptr, kBoth).bytes;
  std::erase(text, '_');
  std::string_view digits = text;
  if (digits.starts_with('+')) digits.remove_prefix(1);
  double value;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || result.ec != std::errc() || result.ptr != digits.data() + digits.size())
    return std::nullopt;
  return value;
}

std::optional<int64_t> parse_integer(std::string text, int base) {
  text = strip(Text(text), nullptr, kBoth).bytes;
  std::erase(text, '_');
  std::string_view digits = text;
  bool negative = false;
  if (digits.starts_with('+') || digits.starts_with('-')) {
    negative = digits[0] == '-';
    digits.remove_prefix(1);
  }
  const auto prefix = [&](std::string_view lower, std::string_view upper) {
    if (digits.starts_with(lower) || digits.starts_with(upper)) digits.remove_prefix(2);
  };
  if (base == 16) prefix("0x", "0X");
  if (base == 8) prefix("0o", "0O");
  if (base == 2) prefix("0b", "0B");
  int64_t value;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (digits.empty() || digits[0] == '-' || result.ec != std::errc() ||
      result.ptr != digits.data() + digits.size())
    return std::nullopt;
  return negative ? -value : value;
}

Value filter_int(Run& run, Value value, const Arguments& arguments) {
  const Value* given = arguments.find(0, "default");
  const Value fallback = given ? *given : Value::of(int64_t{0});
  const int64_t base = run.integer_argument(arguments, 1, "base", 10);
  if (base < 2 || base > 36) run.fail("int: a base must be in 2 to 36");
  if (value.is_integer()) return Value::of(value.as_integer());
  std::optional<double> real;
  if (value.is_string()) {
    if (const auto integer = parse_integer(value.text->bytes, static_cast<int>(base)))
      return Value::of(*integer);
    real = parse_float(value.text->bytes);
  } else if (value.is_number()) {
    real = value.as_real();
  }
  if (!real || !std::isfinite(*real)) return fallback;
  if (std::fabs(*real) >= 9.2e18) run.fail("int: {} does not fit in 64 bits", *real);
  return Value::of(static_cast<int64_t>(*real));
}

Value filter_float(Run&, Value value, const Arguments& arguments) {
  const Value* fallback = arguments.find(0, "default");
  if (value.is_number()) return Value::of(value.as_real());
  if (value.is_string())
    if (const auto real = parse_float(value.text->bytes)) return Value::of(*real);
  return fallback ? *fallback : Value::of(0.0);
}

Value filter_round(Run& run, Value value, const Arguments& arguments) {
  if (!value.is_number()) run.fail("round: not a number but {}", run.type_name(value));
  const int64_t precision = run.integer_argument(arguments, 0, "precision", 0);
  if (std::abs(precision) > 300) run.fail("round: a precision of {}", precision);
  const Value* method = arguments.find(1, "method");
  const std::string name = method ? run.to_text(*method).bytes : "common";
  if (name == "common") {
    if (value.is_integer() && precision >= 0) return Value::of(value.as_integer());
    if (precision < 0) {
      const double scale = std::pow(10.0, static_cast<double>(-precision));
      return Value::of(std::nearbyint(value.as_real() / scale) * scale);
    }
    if (!std::isfinite(value.as_real())) return value;
    // Correctly rounded from the exact binary value, as Python does.
    return Value::of(parse_float(fmt::format("{:.{}f}", value.as_real(), precision)).value_or(0));
  }
  const double scale = std::pow(10.0, static_cast<double>(precision));
  if (name == "ceil") return Value::of(std::ceil(value.as_real() * scale) / scale);
  if (name == "floor") return Value::of(std::floor(value.as_real() * scale) / scale);
  run.fail("round: the method must be common, ceil or floor");
}

Value filter_abs(Run& run, Value value, const Arguments&) {
  if (value.is_integer()) {
    if (value.as_integer() == INT64_MIN) run.fail("integer overflow");
    return Value::of(std::abs(value.as_integer()));
  }
  if (!value.is_number()) run.fail("abs: not a number but {}", run.type_name(value));
  return Value::of(std::fabs(value.as_real()));
}

// ── sequences ──

// "a.0.b": attributes and indices, one after the other.
Value nested_attribute(Run& run, Value value, Value path) {
  if (!path.is_string()) return run.item(value, path);
  for (const Text& part : split(*path.text, ".", -1)) {
    const bool index = !part.bytes.empty() && part.size() < 10 &&
                       part.bytes.find_first_not_of("0123456789") == std::string::npos;
    value = index ? run.item(value, Value::of(int64_t{std::stoi(part.bytes)}))
                  : run.item(value, run.make(part));
  }
  return value;
}

// What sort, unique, min, max compare: the attribute, in lower case where case does not matter.
Value sort_key(Run& run, Value value, const Value* attribute, bool case_sensitive) {
  if (attribute && !attribute->is_none()) value = nested_attribute(run, value, *attribute);
  if (!case_sensitive && value.is_string()) {
    run.scanned(value.text->size());
    value = run.make(change_case(*value.text, Case::kLower));
  }
  return value;
}

void sort_by(Run& run, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  run.step(keyed.size());
  // Python's reverse keeps equal elements in their order.
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  std::stable_sort(keyed.begin(), keyed.end(),
                   [&](const auto& a, const auto& b) { return run.compare(a.first, b.first) < 0; });
  if (reverse) std::reverse(keyed.begin(), keyed.end());
}

Value filter_length(Run& run, Value value, const Arguments&) {
  return Value::of(static_cast<int64_t>(run.length(value)));
}

Value filter_list(Run& run, Value value, const Arguments&) {
  return run.make_list(run.iterate(value));
}

Value filter_first(Run& run, Value value, const Arguments&) {
  if (value.is(Type::kIterator)) {
    List& list = *value.list;
    return list.consumed < list.items.size() ? list.items[list.consumed++]
                                             : run.make_undefined("the first of an empty sequence");
  }
  const std::vector<Value> items = run.iterate(value);
  return items.empty() ? run.make_undefined("the first of an empty sequence") : items.front();
}

Value filter_last(Run& run, Value value, const Arguments&) {
  if (value.is(Type::kIterator)) run.fail("last: a generator has no last element; use |list");
  const std::vector<Value> items = run.iterate(value);
  return items.empty() ? run.make_undefined("the last of an empty sequence") : items.back();
}

Value filter_join(Run& run, Value value, const Arguments& arguments) {
  const Value* separator = arguments.find(0, "d");
  const Value* attribute = arguments.find(1, "attribute");
  TextBuilder out;
  bool first = true;
  for (const Value item : run.iterate(value)) {
    if (!first && separator) run.append_text(*separator, out);
    first = false;
    run.append_text(attribute ? nested_attribute(run, item, *attribute) : item, out);
  }
  return run.make(out.take());
}

Value filter_reverse(Run& run, Value value, const Arguments&) {
  std::vector<Value> items = run.iterate(value);
  std::reverse(items.begin(), items.end());
  if (!value.is_string()) return run.make_list(std::move(items), Type::kIterator);
  TextBuilder out;
  for (const Value item : items) out.append(*item.text);
  return run.make(out.take());
}

Value filter_sort(Run& run, Value value, const Arguments& arguments) {
  const bool case_sensitive = run.bool_argument(arguments, 1, "case_sensitive", false);
  const Value* attribute = arguments.find(2, "attribute");
  std::vector<std::pair<Value, Value>> keyed;
  for (const Value item : run.iterate(value))
    keyed.emplace_back(sort_key(run, item, attribute, case_sensitive), item);
  sort_by(run, keyed, run.bool_argument(arguments, 0, "reverse", false));
  std::vector<Value> items;
  for (const auto& [key, item] : keyed) items.push_back(item);
  return run.make_list(std::move(items));
}

Value filter_dictsort(Run& run, Value value, const Arguments& arguments) {
  if (!value.is(Type::kDict)) run.fail("dictsort: not a dict but {}", run.type_name(value));
  const bool case_sensitive = run.bool_argument(arguments, 0, "case_sensitive", false);
  const Value* by = arguments.find(1, "by");
  const std::string name = by ? run.to_text(*by).bytes : "key";
  if (name != "key" && name != "value") run.fail("dictsort: by must be key or value");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, entry] : value.dict->entries)
    keyed.emplace_back(sort_key(run, name == "key" ? key : entry, nullptr, case_sensitive),
                       run.make_list({key, entry}, Type::kTuple));
  sort_by(run, keyed, run.bool_argument(arguments, 2, "reverse", false));
  std::vector<Value> items;
  for (const auto& [key, item] : keyed) items.push_back(item);
  return run.make_list(std::move(items));
}

Value filter_unique(Run& run, Value value, const Arguments& arguments) {
  const bool case_sensitive = run.bool_argument(arguments, 0, "case_sensitive", false);
  const Value* attribute = arguments.find(1, "attribute");
  const Value seen = run.make_dict();
  std::vector<Value> items;
  for (const Value item : run.iterate(value)) {
    const Value key = sort_key(run, item, attribute, case_sensitive);
    if (run.find_item(*seen.dict, key)) continue;
    run.set_item(*seen.dict, key, Value::none());
    items.push_back(item);
  }
  return run.make_list(std::move(items), Type::kIterator);
}

template <bool largest>
Value filter_extreme(Run& run, Value value, const Arguments& arguments) {
  const bool case_sensitive = run.bool_argument(arguments, 0, "case_sensitive", false);
  const Value* attribute = arguments.find(1, "attribute");
  Value best, best_key;
  bool any = false;
  for (const Value item : run.iterate(value)) {
    const Value key = sort_key(run, item, attribute, case_sensitive);
    const bool better =
        !any || (largest ? run.compare(key, best_key) > 0 : run.compare(key, best_key) < 0);
    any = true;
    if (!better) continue;
    best = item;
    best_key = key;
  }
  return any ? best : run.make_undefined("the extreme of an empty sequence");
}

Value filter_sum(Run& run, Value value, const Arguments& arguments) {
  const Value* attribute = arguments.find(0, "attribute");
  const Value* start = arguments.find(1, "start");
  Value total = start ? *start : Value::of(int64_t{0});
  for (const Value item : run.iterate(value)) {
    const bool direct = !attribute || attribute->is_none();
    total = run.add(total, direct ? item : nested_attribute(run, item, *attribute));
  }
  return total;
}

Value filter_items(Run& run, Value value, const Arguments&) {
  if (value.is_undefined()) return run.make_list({}, Type::kIterator);
  if (!value.is(Type::kDict)) run.fail("items: not a dict but {}", run.type_name(value));
  std::vector<Value> items;
  for (const auto& [key, entry] : value.dict->entries)
    items.push_back(run.make_list({key, entry}, Type::kTuple));
  return run.make_list(std::move(items), Type::kIterator);
}

Value filter_batch(Run& run, Value value, const Arguments& arguments) {
  const int64_t count = run.integer_argument(arguments, 0, "linecount", 0);
  const Value* fill = arguments.find(1, "fill_with");
  if (count < 1) run.fail("batch: a line count of {}", count);
  std::vector<Value> lines, line;
  for (const Value item : run.iterate(value)) {
    if (static_cast<int64_t>(line.size()) == count) {
      lines.push_back(run.make_list(std::move(line)));
      line.clear();
    }
    line.push_back(item);
  }
  if (!line.empty()) {
    while (fill && !fill->is_none() && static_cast<int64_t>(line.size()) < count) {
      run.charge(sizeof(Value));
      line.push_back(*fill);
    }
    lines.push_back(run.make_list(std::move(line)));
  }
  return run.make_list(std::move(lines), Type::kIterator);
}

// The arguments after the first `count`.
Arguments rest(const Arguments& arguments, size_t count) {
  Arguments result;
  for (size_t i = count; i < arguments.positional.size(); ++i)
    result.positional.push_back(arguments.positional[i]);
  result.named = arguments.named;
  return result;
}

// map and select take None and other false values for an empty sequence.
std::vector<Value> iterate_if_true(Run& run, Value value) {
  return run.truthy(value) ? run.iterate(value) : std::vector<Value>();
}

Value filter_map(Run& run, Value value, const Arguments& arguments) {
  std::vector<Value> items = iterate_if_true(run, value);
  const Value* attribute = nullptr;
  const Value* fallback = nullptr;
  for (const auto& [name, given] : arguments.named) {
    if (name == "attribute") attribute = &given;
    if (name == "default") fallback = &given;
  }
  if (arguments.positional.empty()) {
    if (!attribute) run.fail("map needs a filter or attribute=");
    for (Value& item : items) {
      item = nested_attribute(run, item, *attribute);
      if (fallback && item.is_undefined()) item = *fallback;
    }
  } else {
    const std::string name = run.text_argument(arguments, 0, "filter").bytes;
    const Arguments inner = rest(arguments, 1);
    for (Value& item : items) {
      const Run::Depth depth(run);
      item = run.apply_filter(name, item, inner);
    }
  }
  return run.make_list(std::move(items), Type::kIterator);
}

// select, reject, selectattr, rejectattr.
template <bool keep, bool by_attribute>
Value filter_select(Run& run, Value value, const Arguments& arguments) {
  constexpr size_t kTestPosition = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty())
    run.fail("selectattr and rejectattr need an attribute");
  const bool has_test = arguments.positional.size() > kTestPosition;
  const std::string test =
      has_test ? run.text_argument(arguments, kTestPosition, "test").bytes : "";
  const Arguments inner = rest(arguments, kTestPosition + 1);
  std::vector<Value> kept;
  for (const Value item : iterate_if_true(run, value)) {
    const Run::Depth depth(run);
    run.step();
    const Value tested = by_attribute ? nested_attribute(run, item, arguments.positional[0]) : item;
    const bool holds = has_test ? run.apply_test(test, tested, inner) : run.truthy(tested);
    if (holds == keep) kept.push_back(item);
  }
  return run.make_list(std::move(kept), Type::kIterator);
}

// ── others ──

Value filter_default(Run& run, Value value, const Arguments& arguments) {
  const Value* fallback = arguments.find(0, "default_value");
  const bool also_false = run.bool_argument(arguments, 1, "boolean", false);
  if (!value.is_undefined() && (!also_false || run.truthy(value))) return value;
  return fallback ? *fallback : run.make(Text());
}

Value filter_attr(Run& run, Value value, const Arguments& arguments) {
  const std::string& name = run.text_argument(arguments, 0, "name").bytes;
  if (value.is(Type::kDict)) {  // attributes only, never items
    const Native method = find_method(Type::kDict, name);
    return method ? run.make_method(method, value) : run.make_undefined(name);
  }
  return run.attribute(value, name);
}

struct Entry {
  std::string_view name;
  Native filter;
};

constexpr Entry kFilters[] = {
    {"abs", filter_abs},
    {"attr", filter_attr},
    {"batch", filter_batch},
    {"capitalize", filter_case<Case::kCapitalize>},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"e", filter_escape<false>},
    {"escape", filter_escape<false>},
    {"first", filter_first},
    {"float", filter_float},
    {"forceescape", filter_escape<true>},
    {"format", filter_format},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_case<Case::kLower>},
    {"map", filter_map},
    {"max", filter_extreme<true>},
    {"min", filter_extreme<false>},
    {"reject", filter_select<false, false>},
    {"rejectattr", filter_select<false, true>},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", filter_select<true, false>},
    {"selectattr", filter_select<true, true>},
    {"sort", filter_sort},
    {"string", filter_string},
    {"sum", filter_sum},
    {"title", filter_case<Case::kJinjaTitle>},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"unique", filter_unique},
    {"upper", filter_case<Case::kUpper>},
    {"wordcount", filter_wordcount},
};

}  // namespace

Native find_filter(std::string_view name) {
  const auto found = std::find_if(std::begin(kFilters), std::end(kFilters),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == std::end(kFilters) ? nullptr : found->filter;
}

}  // namespace whit::jinja
