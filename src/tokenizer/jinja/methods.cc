// Methods of strings, lists, dicts and loops, and the global functions.
//
// list.append, extend, insert and pop are there because templates written for llama.cpp use them,
// although transformers' sandbox refuses to change lists; dicts cannot be changed.
#include <algorithm>
#include <array>
#include <span>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

Value make_texts(Interpreter& run, std::vector<Text> texts) {
  std::vector<Value> values;
  values.reserve(texts.size());
  for (Text& text : texts) values.push_back(run.make(std::move(text)));
  return run.make_list(std::move(values));
}

// ── str ──

template <Sides sides>
Value str_strip(Interpreter& run, Value self, const Arguments& arguments) {
  const Value* characters = arguments.find(0, "chars");
  const Text* set = nullptr;
  if (characters && !characters->is_none()) set = &run.text_argument(arguments, 0, "chars");
  run.scanned(self.text->size() * (1 + (set ? set->size() : 0) / 16));
  return run.make(strip(*self.text, set, sides));
}

template <bool from_right>
Value str_split(Interpreter& run, Value self, const Arguments& arguments) {
  const Value* separator = arguments.find(0, "sep");
  const int64_t limit = run.integer_argument(arguments, 1, "maxsplit", -1);
  run.scanned(self.text->size());
  if (!separator || separator->is_none()) {
    run.reserve(count_space_parts(*self.text) * sizeof(Text));
    return make_texts(
        run, from_right ? split_spaces_right(*self.text, limit) : split_spaces(*self.text, limit));
  }
  const Text& text = run.text_argument(arguments, 0, "sep");
  if (text.bytes.empty()) run.fail("split: the separator is empty");
  run.reserve((count_occurrences(*self.text, text.bytes) + 1) * sizeof(Text));
  return make_texts(run, from_right ? split_right(*self.text, text.bytes, limit)
                                    : split(*self.text, text.bytes, limit));
}

Value str_splitlines(Interpreter& run, Value self, const Arguments& arguments) {
  run.scanned(self.text->size());
  run.reserve(count_space_parts(*self.text) * sizeof(Text));
  return make_texts(run,
                    split_lines(*self.text, run.bool_argument(arguments, 0, "keepends", false)));
}

template <bool at_end>
Value str_has_affix(Interpreter& run, Value self, const Arguments& arguments) {
  const std::string_view text = self.text->view();
  const auto matches = [&](Value affix) {
    if (!affix.is_string())
      run.fail("startswith and endswith need a str or a tuple of them, not {}",
               run.type_name(affix));
    return at_end ? text.ends_with(affix.text->view()) : text.starts_with(affix.text->view());
  };
  if (arguments.positional.size() != 1)
    run.fail("startswith and endswith take one argument, got {}", arguments.positional.size());
  const Value affix = arguments.positional[0];
  if (!affix.is(Type::kTuple)) return Value::of(matches(affix));
  const auto& items = affix.list->items;
  return Value::of(std::any_of(items.begin(), items.end(), matches));
}

template <bool at_end>
Value str_remove_affix(Interpreter& run, Value self, const Arguments& arguments) {
  const Text& affix = run.text_argument(arguments, 0, at_end ? "suffix" : "prefix");
  const std::string_view text = self.text->view();
  if (at_end ? !text.ends_with(affix.view()) : !text.starts_with(affix.view())) return self;
  return run.make(at_end ? substring(*self.text, 0, text.size() - affix.size())
                         : substring(*self.text, affix.size(), text.size()));
}

template <Case to>
Value str_case(Interpreter& run, Value self, const Arguments&) {
  run.scanned(self.text->size());
  return run.make(change_case(*self.text, to));
}

Value str_replace(Interpreter& run, Value self, const Arguments& arguments) {
  const Text& from = run.text_argument(arguments, 0, "old");
  const Text& to = run.text_argument(arguments, 1, "new");
  run.scanned(self.text->size());
  size_t longest;
  if (__builtin_mul_overflow(count_occurrences(*self.text, from.bytes), to.size(), &longest) ||
      __builtin_add_overflow(longest, self.text->size(), &longest))
    longest = SIZE_MAX;
  run.reserve(longest);
  return run.make(
      replace(*self.text, from.bytes, to, run.integer_argument(arguments, 2, "count", -1)));
}

Value str_join(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.size() != 1) run.fail("join takes one argument");
  TextBuilder out;
  bool first = true;
  for (const Value item : run.iterate(arguments.positional[0])) {
    if (!item.is_string()) run.fail("join needs strings, got {}", run.type_name(item));
    if (!first) run.append_text(self, out);
    first = false;
    run.append_text(item, out);
  }
  return run.make(out.take());
}

template <bool from_right, bool must_exist>
Value str_find(Interpreter& run, Value self, const Arguments& arguments) {
  const Text& wanted = run.text_argument(arguments, 0, "sub");
  run.scanned(self.text->size());
  const int64_t size = static_cast<int64_t>(code_points(*self.text));
  const auto bound = [&](size_t position, int64_t fallback) {
    int64_t index = run.integer_argument(arguments, position, "", fallback);
    if (index < 0) index = std::max<int64_t>(0, index + size);
    return std::min(index, size);
  };
  const int64_t begin = bound(1, 0), end = bound(2, size);
  size_t found = std::string::npos;
  if (begin <= end) {
    const size_t first = offset_of(*self.text, static_cast<size_t>(begin));
    const size_t last = offset_of(*self.text, static_cast<size_t>(end));
    const std::string_view part = self.text->view().substr(first, last - first);
    found = from_right ? part.rfind(wanted.bytes) : part.find(wanted.bytes);
    if (found != std::string::npos) found += first;
  }
  if (found == std::string::npos) {
    if (must_exist) run.fail("index: the text is not there");
    return Value::of(int64_t{-1});
  }
  return Value::of(static_cast<int64_t>(code_points(substring(*self.text, 0, found))));
}

Value str_count(Interpreter& run, Value self, const Arguments& arguments) {
  const Text& wanted = run.text_argument(arguments, 0, "sub");
  run.scanned(self.text->size());
  return Value::of(static_cast<int64_t>(count_occurrences(*self.text, wanted.bytes)));
}

enum class CharacterClass { kDigit, kAlpha, kAlnum, kSpace };

template <CharacterClass wanted>
Value str_is(Interpreter& run, Value self, const Arguments&) {
  const Text& text = *self.text;
  run.scanned(text.size());
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text.bytes, pos);
    const bool digit = is_numeric(c.value);
    const bool alpha = is_alphabetic(c.value);
    const bool fits = wanted == CharacterClass::kDigit   ? digit
                      : wanted == CharacterClass::kAlpha ? alpha
                      : wanted == CharacterClass::kAlnum ? digit || alpha
                                                         : is_python_space(c.value);
    if (!fits) return Value::of(false);
    pos += c.bytes;
  }
  return Value::of(!text.bytes.empty());
}

// str.isupper, str.islower: some cased character, and none of the other case.
template <bool upper>
Value str_is_case(Interpreter& run, Value self, const Arguments&) {
  return Value::of(run.apply_test(upper ? "upper" : "lower", self, {}));
}

Value str_format(Interpreter& run, Value self, const Arguments& arguments) {
  return format_braces(run, *self.text, arguments);
}

Value str_zfill(Interpreter& run, Value self, const Arguments& arguments) {
  const int64_t width = run.integer_argument(arguments, 0, "width", 0);
  const int64_t missing = width - static_cast<int64_t>(code_points(*self.text));
  if (missing <= 0) return self;
  run.charge(static_cast<size_t>(missing));
  const bool sign = self.text->view().starts_with('-') || self.text->view().starts_with('+');
  TextBuilder out;
  if (sign) out.append(*self.text, 0, 1);
  out.append(std::string(static_cast<size_t>(missing), '0'));
  out.append(*self.text, sign ? 1 : 0, self.text->size());
  return run.make(out.take());
}

enum class Align { kLeft, kRight, kCenter };

template <Align align>
Value str_justify(Interpreter& run, Value self, const Arguments& arguments) {
  const int64_t width = run.integer_argument(arguments, 0, "width", 0);
  const int64_t missing = width - static_cast<int64_t>(code_points(*self.text));
  if (missing <= 0) return self;
  run.charge(static_cast<size_t>(missing));
  const int64_t left = align == Align::kLeft    ? 0
                       : align == Align::kRight ? missing
                                                : missing / 2 + (missing & width & 1);
  TextBuilder out;
  out.append(std::string(static_cast<size_t>(left), ' '));
  out.append(*self.text);
  out.append(std::string(static_cast<size_t>(missing - left), ' '));
  return run.make(out.take());
}

template <bool from_right>
Value str_partition(Interpreter& run, Value self, const Arguments& arguments) {
  const Text& separator = run.text_argument(arguments, 0, "sep");
  if (separator.bytes.empty()) run.fail("partition: the separator is empty");
  const Text& text = *self.text;
  const size_t found =
      from_right ? text.bytes.rfind(separator.bytes) : text.bytes.find(separator.bytes);
  const Value empty = run.make(Text());
  if (found == std::string::npos)
    return run.make_list(from_right ? std::vector<Value>{empty, empty, self}
                                    : std::vector<Value>{self, empty, empty},
                         Type::kTuple);
  const size_t end = found + separator.size();
  return run.make_list({run.make(substring(text, 0, found)), run.make(substring(text, found, end)),
                        run.make(substring(text, end, text.size()))},
                       Type::kTuple);
}

// ── list ──

Value list_append(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.size() != 1) run.fail("append takes one argument");
  run.charge(sizeof(Value));
  self.list->items.push_back(arguments.positional[0]);
  return Value::none();
}

Value list_extend(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.size() != 1) run.fail("extend takes one argument");
  const std::vector<Value> items = run.iterate(arguments.positional[0]);
  run.charge(items.size() * sizeof(Value));
  self.list->items.insert(self.list->items.end(), items.begin(), items.end());
  return Value::none();
}

Value list_insert(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.size() != 2) run.fail("insert takes two arguments");
  const int64_t size = static_cast<int64_t>(self.list->items.size());
  int64_t index = run.integer_argument(arguments, 0, "index", 0);
  if (index < 0) index = std::max<int64_t>(0, index + size);
  run.charge(sizeof(Value));
  run.scanned(self.list->items.size());
  self.list->items.insert(self.list->items.begin() + std::min(index, size),
                          arguments.positional[1]);
  return Value::none();
}

Value list_pop(Interpreter& run, Value self, const Arguments& arguments) {
  const int64_t size = static_cast<int64_t>(self.list->items.size());
  int64_t index = run.integer_argument(arguments, 0, "index", -1);
  if (index < 0) index += size;
  if (index < 0 || index >= size) run.fail("pop: no element {} in a list of {}", index, size);
  run.scanned(self.list->items.size());
  const Value value = self.list->items[static_cast<size_t>(index)];
  self.list->items.erase(self.list->items.begin() + index);
  return value;
}

Value list_index(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.empty()) run.fail("index takes an argument");
  const auto& items = self.list->items;
  for (size_t i = 0; i < items.size(); ++i)
    if (run.equal(items[i], arguments.positional[0])) return Value::of(static_cast<int64_t>(i));
  run.fail("index: the value is not in the list");
}

Value list_count(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.size() != 1) run.fail("count takes one argument");
  int64_t count = 0;
  for (const Value item : self.list->items) count += run.equal(item, arguments.positional[0]);
  return Value::of(count);
}

Value list_copy(Interpreter& run, Value self, const Arguments&) {
  return run.make_list(self.list->items);
}

// ── dict ──

Value dict_get(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.empty()) run.fail("get takes a key");
  if (const Value* found = run.find_item(*self.dict, arguments.positional[0])) return *found;
  const Value* fallback = arguments.find(1, "default");
  return fallback ? *fallback : Value::none();
}

Value dict_items(Interpreter& run, Value self, const Arguments&) {
  std::vector<Value> items;
  for (const auto& [key, value] : self.dict->entries)
    items.push_back(run.make_list({key, value}, Type::kTuple));
  return run.make_list(std::move(items));
}

Value dict_keys(Interpreter& run, Value self, const Arguments&) {
  return run.make_list(run.iterate(self));
}

Value dict_values(Interpreter& run, Value self, const Arguments&) {
  std::vector<Value> values;
  for (const auto& [key, value] : self.dict->entries) values.push_back(value);
  return run.make_list(std::move(values));
}

Value dict_copy(Interpreter& run, Value self, const Arguments&) {
  const Value copy = run.make_dict();
  for (const auto& [key, value] : self.dict->entries) run.set_item(*copy.dict, key, value);
  return copy;
}

Value dict_change(Interpreter& run, Value, const Arguments&) {
  run.fail(ErrorKind::kUnsupported, "templates cannot change dicts");
}

// ── loop ──

Value loop_cycle(Interpreter& run, Value self, const Arguments& arguments) {
  if (arguments.positional.empty()) run.fail("loop.cycle needs values");
  return arguments.positional[self.loop->index % arguments.positional.size()];
}

Value loop_changed(Interpreter& run, Value self, const Arguments& arguments) {
  const Loop& loop = *self.loop;
  bool same = loop.changed_called && loop.last_changed.size() == arguments.positional.size();
  for (size_t i = 0; same && i < arguments.positional.size(); ++i)
    same = run.equal(loop.last_changed[i], arguments.positional[i]);
  loop.changed_called = true;
  loop.last_changed = arguments.positional;
  return Value::of(!same);
}

// ── globals ──

Value global_range(Interpreter& run, Value, const Arguments& arguments) {
  if (arguments.positional.empty() || arguments.positional.size() > 3)
    run.fail("range takes one to three arguments");
  const bool one = arguments.positional.size() == 1;
  const int64_t begin = one ? 0 : run.integer_argument(arguments, 0, "start", 0);
  const int64_t end = run.integer_argument(arguments, one ? 0 : 1, "stop", 0);
  const int64_t step = run.integer_argument(arguments, 2, "step", 1);
  if (step == 0) run.fail("range: the step is zero");
  constexpr size_t kMaxRange = 100'000;  // Jinja's sandbox has the same limit
  std::vector<Value> values;
  for (int64_t i = begin; step > 0 ? i < end : i > end;) {
    if (values.size() >= kMaxRange)
      run.fail(ErrorKind::kResource, fmt::format("range: more than {} values", kMaxRange));
    values.push_back(Value::of(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  run.step(1 + values.size() / 16);
  return run.make_list(std::move(values));
}

// dict(…) and namespace(…): from a dict or pairs, and named values.
template <Type type>
Value global_dict(Interpreter& run, Value, const Arguments& arguments) {
  const Value result = run.make_dict(type);
  if (arguments.positional.size() > 1) run.fail("dict and namespace take one positional argument");
  for (const Value source : arguments.positional) {
    if (source.is(Type::kDict)) {
      for (const auto& [key, value] : source.dict->entries) run.set_item(*result.dict, key, value);
      continue;
    }
    for (const Value pair : run.iterate(source)) {
      const std::vector<Value> parts = run.iterate(pair);
      if (parts.size() != 2) run.fail("dict and namespace need pairs");
      run.set_item(*result.dict, parts[0], parts[1]);
    }
  }
  for (const auto& [name, value] : arguments.named)
    run.set_item(*result.dict, run.make(name), value);
  if (type == Type::kNamespace)
    for (const auto& [key, value] : result.dict->entries)
      if (key.is_string() && key.text->view().starts_with('_'))
        run.fail("a namespace has no attribute {}", key.text->view());
  return result;
}

Value global_raise_exception(Interpreter& run, Value, const Arguments& arguments) {
  const Value* message = arguments.find(0, "message");
  throw Error(ErrorKind::kInvalidArgument, "the chat template refuses this conversation: {}",
              message ? run.to_text(*message).bytes : "no reason given");
}

Value global_strftime_now(Interpreter& run, Value, const Arguments& arguments) {
  const Text& format = run.text_argument(arguments, 0, "format");
  if (format.size() > 256) run.fail("strftime_now: the format is too long");
  const std::time_t now = run.now();
  std::tm local{};
  localtime_r(&now, &local);
  std::array<char, 4096> buffer{};
  const size_t length = std::strftime(buffer.data(), buffer.size(), format.bytes.c_str(), &local);
  return run.make(lossy_utf8({buffer.data(), length}));
}

struct Entry {
  std::string_view name;
  Native function;
};

constexpr Entry kStringMethods[] = {
    {"strip", str_strip<kBoth>},
    {"lstrip", str_strip<kLeft>},
    {"rstrip", str_strip<kRight>},
    {"split", str_split<false>},
    {"rsplit", str_split<true>},
    {"splitlines", str_splitlines},
    {"startswith", str_has_affix<false>},
    {"endswith", str_has_affix<true>},
    {"removeprefix", str_remove_affix<false>},
    {"removesuffix", str_remove_affix<true>},
    {"upper", str_case<Case::kUpper>},
    {"lower", str_case<Case::kLower>},
    {"casefold", str_case<Case::kLower>},
    {"title", str_case<Case::kTitle>},
    {"capitalize", str_case<Case::kCapitalize>},
    {"replace", str_replace},
    {"join", str_join},
    {"find", str_find<false, false>},
    {"rfind", str_find<true, false>},
    {"index", str_find<false, true>},
    {"rindex", str_find<true, true>},
    {"count", str_count},
    {"isdigit", str_is<CharacterClass::kDigit>},
    {"isnumeric", str_is<CharacterClass::kDigit>},
    {"isdecimal", str_is<CharacterClass::kDigit>},
    {"isalpha", str_is<CharacterClass::kAlpha>},
    {"isalnum", str_is<CharacterClass::kAlnum>},
    {"isspace", str_is<CharacterClass::kSpace>},
    {"isupper", str_is_case<true>},
    {"islower", str_is_case<false>},
    {"format", str_format},
    {"zfill", str_zfill},
    {"ljust", str_justify<Align::kLeft>},
    {"rjust", str_justify<Align::kRight>},
    {"center", str_justify<Align::kCenter>},
    {"partition", str_partition<false>},
    {"rpartition", str_partition<true>},
};
constexpr Entry kListMethods[] = {
    {"append", list_append}, {"extend", list_extend}, {"insert", list_insert}, {"pop", list_pop},
    {"index", list_index},   {"count", list_count},   {"copy", list_copy},
};
constexpr Entry kTupleMethods[] = {{"index", list_index}, {"count", list_count}};
constexpr Entry kDictMethods[] = {
    {"get", dict_get},           {"items", dict_items},     {"keys", dict_keys},
    {"values", dict_values},     {"copy", dict_copy},       {"pop", dict_change},
    {"popitem", dict_change},    {"update", dict_change},   {"clear", dict_change},
    {"setdefault", dict_change}, {"fromkeys", dict_change},
};
constexpr Entry kLoopMethods[] = {{"cycle", loop_cycle}, {"changed", loop_changed}};
constexpr Entry kGlobals[] = {
    {"range", global_range},
    {"dict", global_dict<Type::kDict>},
    {"namespace", global_dict<Type::kNamespace>},
    {"raise_exception", global_raise_exception},
    {"strftime_now", global_strftime_now},
};

Native find(std::span<const Entry> table, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const Entry& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : found->function;
}

}  // namespace

Native find_method(Type type, std::string_view name) {
  switch (type) {
    case Type::kString:
      return find(kStringMethods, name);
    case Type::kList:
      return find(kListMethods, name);
    case Type::kTuple:
      return find(kTupleMethods, name);
    case Type::kDict:
      return find(kDictMethods, name);
    case Type::kLoop:
      return find(kLoopMethods, name);
    default:
      return nullptr;
  }
}

Native find_global(std::string_view name) { return find(kGlobals, name); }

}  // namespace whit::jinja
