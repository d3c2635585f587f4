// Python's operations on values: truth, equality, order, str, repr, +, subscripts, and the making
// of values.
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

// Dicts up to this size are searched linearly.
constexpr size_t kLinearEntries = 8;

bool is_container(Type type) {
  return type == Type::kList || type == Type::kTuple || type == Type::kIterator ||
         type == Type::kDict || type == Type::kNamespace;
}

// Positions that a Python slice selects, given the bounds (None where absent).
struct SliceRange {
  int64_t begin, end, step;
};

SliceRange slice_range(Interpreter& run, Value begin, Value end, Value step, int64_t size) {
  const auto integer = [&](Value value) {
    if (!value.is_integer())
      run.fail("slice indices must be integers, not {}", run.type_name(value));
    return value.as_integer();
  };
  SliceRange range{0, 0, step.is_none() ? 1 : integer(step)};
  if (range.step == 0) run.fail("a slice's step cannot be zero");
  range.step = std::max(range.step, -INT64_MAX);
  const bool forward = range.step > 0;
  const auto clamp = [&](int64_t index) {
    if (index < 0) index = std::max<int64_t>(index + size, forward ? 0 : -1);
    return std::min(index, forward ? size : size - 1);
  };
  range.begin = begin.is_none() ? (forward ? 0 : size - 1) : clamp(integer(begin));
  range.end = end.is_none() ? (forward ? size : -1) : clamp(integer(end));
  return range;
}

// Calls visit(index) for each selected position.
template <typename Visit>
void for_slice(const SliceRange& range, Visit visit) {
  if (range.step > 0) {
    for (int64_t i = range.begin; i < range.end;) {
      visit(static_cast<size_t>(i));
      if (__builtin_add_overflow(i, range.step, &i)) return;
    }
  } else {
    for (int64_t i = range.begin; i > range.end;) {
      visit(static_cast<size_t>(i));
      if (__builtin_add_overflow(i, range.step, &i)) return;
    }
  }
}

int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

}  // namespace

// ── making values ──

Value Interpreter::make(Text text) {
  charge(text.memory());
  arena_.texts.push_back(std::move(text));
  return Value::of(&arena_.texts.back());
}

Value Interpreter::make_list(std::vector<Value> items, Type type) {
  charge(sizeof(List) + items.size() * sizeof(Value));
  arena_.lists.push_back({std::move(items), 0});
  return Value::of(type, &arena_.lists.back());
}

Value Interpreter::make_dict(Type type) {
  charge(sizeof(Dict));
  arena_.dicts.emplace_back();
  return Value::of(type, &arena_.dicts.back());
}

Value Interpreter::make_method(Native native, Value self) {
  charge(sizeof(Callable));
  arena_.callables.push_back({native, self, nullptr, nullptr});
  return Value::of(&arena_.callables.back());
}

Value Interpreter::make_undefined(std::string_view what) {
  return Value::undefined(make(what).text);
}

Value Interpreter::from_json(const Json& json, bool marked) {
  const Depth depth(*this);
  switch (json.type()) {
    case Json::value_t::null:
      return Value::none();
    case Json::value_t::boolean:
      return Value::of(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::of(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const uint64_t value = json.get<uint64_t>();
      return value > INT64_MAX ? Value::of_unsigned(value) : Value::of(static_cast<int64_t>(value));
    }
    case Json::value_t::number_float:
      return Value::of(json.get<double>());
    case Json::value_t::string: {
      const std::string text = lossy_utf8(json.get_ref<const std::string&>());
      return make(marked ? Text::marked(text) : Text(text));
    }
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) items.push_back(from_json(item, marked));
      return make_list(std::move(items));
    }
    case Json::value_t::object: {
      const Value dict = make_dict();
      for (const auto& [key, value] : json.items()) {
        const std::string text = lossy_utf8(key);
        set_item(*dict.dict, make(marked ? Text::marked(text) : Text(text)),
                 from_json(value, marked));
      }
      return dict;
    }
    default:
      fail("a JSON value that is not text, number, list or object");
  }
}

std::string Interpreter::key_of(Value key) {
  switch (key.type) {
    case Type::kString:
      return "s" + key.text->bytes;
    case Type::kNone:
      return "n";
    case Type::kUndefined:
      return "u";
    case Type::kBool:
    case Type::kInt:
      return fmt::format("i{}", key.as_integer());
    case Type::kUnsigned:
      return fmt::format("i{}", key.natural);
    case Type::kFloat:
      if (std::fabs(key.real) < 9e15 && key.real == std::floor(key.real))
        return fmt::format("i{}", static_cast<int64_t>(key.real));
      return fmt::format("f{}", key.real);
    case Type::kTuple: {
      const Depth depth(*this);
      std::string text = "t";
      for (const Value item : key.list->items) {
        const std::string part = key_of(item);
        charge(part.size());
        text += fmt::format("{}:{}", part.size(), part);
      }
      return text;
    }
    default:
      fail("{} cannot be a key", type_name(key));
  }
}

const Value* Interpreter::find_item(const Dict& dict, Value key) {
  if (key.is_string()) scanned(key.text->size());
  if (!dict.index.empty()) {
    const auto found = dict.index.find(key_of(key));
    return found == dict.index.end() ? nullptr : &dict.entries[found->second].second;
  }
  std::string wanted;
  for (const auto& [known, value] : dict.entries) {
    if (known.is_string() && key.is_string()) {
      if (known.text->bytes == key.text->bytes) return &value;
    } else if (known.is_string() == key.is_string()) {
      if (wanted.empty()) wanted = key_of(key);
      if (key_of(known) == wanted) return &value;
    }
  }
  if (!key.is_string()) key_of(key);  // throws for what cannot be a key
  return nullptr;
}

void Interpreter::set_item(Dict& dict, Value key, Value value) {
  if (const Value* found = find_item(dict, key)) {
    *const_cast<Value*>(found) = value;
    return;
  }
  charge(sizeof(dict.entries[0]));
  dict.entries.emplace_back(key, value);
  if (dict.entries.size() <= kLinearEntries) return;
  const size_t first = dict.index.empty() ? 0 : dict.entries.size() - 1;
  for (size_t i = first; i < dict.entries.size(); ++i) {
    std::string name = key_of(dict.entries[i].first);
    charge(name.size() + 64);
    dict.index.emplace(std::move(name), i);
  }
}

// ── properties ──

std::string_view Interpreter::type_name(Value value) const {
  switch (value.type) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "None";
    case Type::kBool:
      return "bool";
    case Type::kInt:
    case Type::kUnsigned:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kIterator:
      return "generator";
    case Type::kDict:
      return "dict";
    case Type::kNamespace:
      return "namespace";
    case Type::kLoop:
      return "loop";
    case Type::kCallable:
      return "function";
  }
  return "";
}

bool Interpreter::truthy(Value value) const {
  switch (value.type) {
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
      return value.boolean;
    case Type::kInt:
      return value.integer != 0;
    case Type::kFloat:
      return value.real != 0;
    case Type::kString:
      return !value.text->bytes.empty();
    case Type::kList:
    case Type::kTuple:
      return !value.list->items.empty();
    case Type::kDict:
      return !value.dict->entries.empty();
    default:
      return true;
  }
}

size_t Interpreter::length(Value value) {
  switch (value.type) {
    case Type::kUndefined:
      return 0;
    case Type::kString:
      scanned(value.text->size());
      return code_points(*value.text);
    case Type::kList:
    case Type::kTuple:
      return value.list->items.size();
    case Type::kDict:
      return value.dict->entries.size();
    case Type::kLoop:
      return value.loop->items->size();
    default:
      fail("a value of type {} has no length", type_name(value));
  }
}

std::vector<Value> Interpreter::iterate(Value value) {
  std::vector<Value> items;
  switch (value.type) {
    case Type::kUndefined:
      break;
    case Type::kList:
    case Type::kTuple:
      items = value.list->items;
      break;
    case Type::kIterator:
      items.assign(value.list->items.begin() + static_cast<ptrdiff_t>(value.list->consumed),
                   value.list->items.end());
      value.list->consumed = value.list->items.size();
      break;
    case Type::kDict:
      for (const auto& [key, entry] : value.dict->entries) items.push_back(key);
      break;
    case Type::kString: {
      const Text& text = *value.text;
      for (size_t pos = 0; pos < text.size();) {
        const size_t end = pos + code_point_at(text.bytes, pos).bytes;
        items.push_back(make(substring(text, pos, end)));
        pos = end;
      }
      break;
    }
    default:
      fail("a value of type {} cannot be iterated over", type_name(value));
  }
  step(1 + items.size() / 16);
  return items;
}

bool Interpreter::equal(Value a, Value b) {
  step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) return a.as_integer() == b.as_integer();
    if (a.is(Type::kUnsigned) && b.is(Type::kUnsigned)) return a.natural == b.natural;
    return a.as_real() == b.as_real();
  }
  if (a.type != b.type) return false;
  switch (a.type) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      if (a.text->size() != b.text->size()) return false;
      scanned(a.text->size());
      return a.text->bytes == b.text->bytes;
    case Type::kList:
    case Type::kTuple: {
      const Depth depth(*this);
      if (a.list->items.size() != b.list->items.size()) return false;
      for (size_t i = 0; i < a.list->items.size(); ++i)
        if (!equal(a.list->items[i], b.list->items[i])) return false;
      return true;
    }
    case Type::kDict: {
      const Depth depth(*this);
      if (a.dict->entries.size() != b.dict->entries.size()) return false;
      for (const auto& [key, value] : a.dict->entries) {
        const Value* other = find_item(*b.dict, key);
        if (!other || !equal(value, *other)) return false;
      }
      return true;
    }
    case Type::kIterator:
      return a.list == b.list;
    case Type::kNamespace:
      return a.dict == b.dict;
    case Type::kLoop:
      return a.loop == b.loop;
    default:
      return a.callable == b.callable;
  }
}

int Interpreter::compare(Value a, Value b) {
  step();
  if (a.is_number() && b.is_number()) {
    if (a.is_integer() && b.is_integer()) {
      return (a.as_integer() > b.as_integer()) - (a.as_integer() < b.as_integer());
    }
    return (a.as_real() > b.as_real()) - (a.as_real() < b.as_real());
  }
  if (a.is_string() && b.is_string()) {
    scanned(std::min(a.text->size(), b.text->size()));
    const int order = a.text->bytes.compare(b.text->bytes);  // UTF-8 keeps the order of code points
    return (order > 0) - (order < 0);
  }
  if (a.is_listlike() && a.type == b.type) {
    const Depth depth(*this);
    const size_t common = std::min(a.list->items.size(), b.list->items.size());
    for (size_t i = 0; i < common; ++i)
      if (!equal(a.list->items[i], b.list->items[i]))
        return compare(a.list->items[i], b.list->items[i]);
    return (a.list->items.size() > b.list->items.size()) -
           (a.list->items.size() < b.list->items.size());
  }
  for (const Value value : {a, b})
    if (value.is_undefined() && value.text) fail("{} is undefined", value.text->view());
  fail("{} and {} cannot be ordered", type_name(a), type_name(b));
}

bool Interpreter::contains(Value container, Value item) {
  switch (container.type) {
    case Type::kString:
      if (!item.is_string()) fail("'in <str>' needs a str on the left, not {}", type_name(item));
      scanned(container.text->size());
      return container.text->bytes.find(item.text->bytes) != std::string::npos;
    case Type::kDict:
      return find_item(*container.dict, item) != nullptr;
    default:
      for (const Value value : iterate(container))
        if (equal(value, item)) return true;
      return false;
  }
}

// ── str and repr ──

const Text& Interpreter::to_text(Value value) {
  if (value.is_string()) return *value.text;
  TextBuilder out;
  append_text(value, out);
  return *make(out.take()).text;
}

void Interpreter::append_text(Value value, TextBuilder& out) {
  switch (value.type) {
    case Type::kUndefined:
      return;
    case Type::kString:
      charge(value.text->size());
      return out.append(*value.text);
    default:
      return append_repr(value, out);
  }
}

void Interpreter::append_repr(Value value, TextBuilder& out) {
  const Depth depth(*this);
  step();
  charge(16);
  const auto append_items = [&](const std::vector<Value>& items) {
    for (size_t i = 0; i < items.size(); ++i) {
      if (i > 0) out.append(", ");
      append_repr(items[i], out);
    }
  };
  switch (value.type) {
    case Type::kUndefined:
      return out.append("Undefined");
    case Type::kNone:
      return out.append("None");
    case Type::kBool:
      return out.append(value.boolean ? "True" : "False");
    case Type::kInt:
      return out.append(std::to_string(value.integer));
    case Type::kUnsigned:
      return out.append(std::to_string(value.natural));
    case Type::kFloat:
      return out.append(float_text(value.real));
    case Type::kString:
      charge(value.text->size());
      if (value.text->markup) out.append("Markup(");
      append_quoted(*value.text, out);
      if (value.text->markup) out.append(")");
      return;
    case Type::kList:
      out.append("[");
      append_items(value.list->items);
      return out.append("]");
    case Type::kTuple:
      out.append("(");
      append_items(value.list->items);
      return out.append(value.list->items.size() == 1 ? ",)" : ")");
    case Type::kDict: {
      out.append("{");
      bool first = true;
      for (const auto& [key, entry] : value.dict->entries) {
        if (!first) out.append(", ");
        first = false;
        append_repr(key, out);
        out.append(": ");
        append_repr(entry, out);
      }
      return out.append("}");
    }
    default:
      return out.append(fmt::format("<{}>", type_name(value)));
  }
}

// ── arithmetic ──

Value Interpreter::add(Value a, Value b) {
  if (a.is_integer() && b.is_integer()) {
    int64_t sum;
    if (__builtin_add_overflow(a.as_integer(), b.as_integer(), &sum)) fail("integer overflow");
    return Value::of(sum);
  }
  if (a.is_number() && b.is_number()) return Value::of(a.as_real() + b.as_real());
  if (a.is_string() && b.is_string()) {
    TextBuilder out;
    const bool markup = a.text->markup || b.text->markup;
    for (const Value part : {a, b}) {
      if (markup && !part.text->markup)
        append_escaped(*part.text, out);
      else
        out.append(*part.text);
    }
    Text text = out.take();
    text.markup = markup;
    return make(std::move(text));
  }
  if (a.is_listlike() && a.type == b.type) {
    std::vector<Value> items = a.list->items;
    items.insert(items.end(), b.list->items.begin(), b.list->items.end());
    return make_list(std::move(items), a.type);
  }
  return binary("+", a, b);
}

Value Interpreter::binary(std::string_view op, Value a, Value b) {
  for (const Value value : {a, b})
    if (value.is_undefined())
      fail("{} is undefined", value.text ? value.text->view() : std::string_view("a value"));
  if (op == "%" && a.is_string()) return format_percent(*this, *a.text, b);
  if (op == "*" && (a.is_string() || a.is_listlike() || b.is_string() || b.is_listlike())) {
    if (a.is_integer()) std::swap(a, b);
    if (b.is_integer()) {
      const uint64_t count = static_cast<uint64_t>(std::max<int64_t>(b.as_integer(), 0));
      const uint64_t unit =
          a.is_string() ? a.text->memory() : a.list->items.size() * sizeof(Value) + 1;
      uint64_t total;
      charge(__builtin_mul_overflow(unit, count, &total) ? SIZE_MAX : total);
      if (a.is_string()) {
        TextBuilder out;
        for (uint64_t i = 0; i < count; ++i) out.append(*a.text);
        return make(out.take());
      }
      std::vector<Value> items;
      for (uint64_t i = 0; i < count; ++i)
        items.insert(items.end(), a.list->items.begin(), a.list->items.end());
      return make_list(std::move(items), a.type);
    }
  }
  if (!a.is_number() || !b.is_number())
    fail("unsupported operands for {}: {} and {}", op, type_name(a), type_name(b));
  const bool integers = a.is_integer() && b.is_integer();
  const int64_t x = integers ? a.as_integer() : 0, y = integers ? b.as_integer() : 0;
  const double p = a.as_real(), q = b.as_real();
  int64_t result;
  if (op == "-") {
    if (!integers) return Value::of(p - q);
    if (__builtin_sub_overflow(x, y, &result)) fail("integer overflow");
    return Value::of(result);
  }
  if (op == "*") {
    if (!integers) return Value::of(p * q);
    if (__builtin_mul_overflow(x, y, &result)) fail("integer overflow");
    return Value::of(result);
  }
  if (op == "**") {
    if (!integers || y < 0) {
      if (p == 0 && q < 0) fail("division by zero");
      return Value::of(std::pow(p, q));
    }
    int64_t power = 1, base = x;
    for (int64_t exponent = y; exponent > 0; exponent >>= 1) {
      if ((exponent & 1) && __builtin_mul_overflow(power, base, &power)) fail("integer overflow");
      if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail("integer overflow");
    }
    return Value::of(power);
  }
  if (q == 0) fail("division by zero");
  if (op == "/") return Value::of(p / q);
  if (!integers) {
    const double quotient = std::floor(p / q);
    return Value::of(op == "//" ? quotient : p - quotient * q);
  }
  if (x == INT64_MIN && y == -1) {
    if (op == "//") fail("integer overflow");
    return Value::of(int64_t{0});
  }
  return Value::of(op == "//" ? floor_divide(x, y) : x - floor_divide(x, y) * y);
}

// ── attributes and subscripts ──

Value Interpreter::attribute(Value object, const std::string& name) {
  if (object.is_undefined())
    fail("{} is undefined", object.text ? object.text->view() : std::string_view("a value"));
  if (object.is(Type::kLoop)) {
    const Loop& loop = *object.loop;
    const int64_t index = static_cast<int64_t>(loop.index);
    const int64_t size = static_cast<int64_t>(loop.items->size());
    if (name == "index") return Value::of(index + 1);
    if (name == "index0") return Value::of(index);
    if (name == "revindex") return Value::of(size - index);
    if (name == "revindex0") return Value::of(size - index - 1);
    if (name == "first") return Value::of(index == 0);
    if (name == "last") return Value::of(index + 1 == size);
    if (name == "length") return Value::of(size);
    if (name == "depth") return Value::of(int64_t{1});  // counts recursive loops only
    if (name == "depth0") return Value::of(int64_t{0});
    if (name == "previtem")
      return index > 0 ? (*loop.items)[loop.index - 1] : make_undefined("loop.previtem");
    if (name == "nextitem")
      return index + 1 < size ? (*loop.items)[loop.index + 1] : make_undefined("loop.nextitem");
  }
  if (const Native method = find_method(object.type, name)) return make_method(method, object);
  if (object.is(Type::kDict) || object.is(Type::kNamespace)) {
    const Text key(name);
    if (const Value* found = find_item(*object.dict, Value::of(&key))) return *found;
  }
  return make_undefined(fmt::format("attribute '{}' of a {}", name, type_name(object)));
}

Value Interpreter::item(Value object, Value key) {
  if (object.is_undefined())
    fail("{} is undefined", object.text ? object.text->view() : std::string_view("a value"));
  if (object.is(Type::kDict)) {
    if (key.is_string() || !is_container(key.type) || key.is(Type::kTuple)) {
      if (const Value* found = find_item(*object.dict, key)) return *found;
    }
  } else if (key.is_integer() && (object.is_listlike() || object.is_string())) {
    int64_t index = key.as_integer();
    if (object.is_string()) {
      scanned(object.text->size());
      const Text character = code_point(*object.text, index);
      if (!character.bytes.empty()) return make(character);
    } else {
      const int64_t size = static_cast<int64_t>(object.list->items.size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) return object.list->items[static_cast<size_t>(index)];
    }
  }
  if (!key.is_string()) return make_undefined(fmt::format("an element of a {}", type_name(object)));
  // As in Jinja, a subscript that is not there falls back to the attribute.
  if (const Native method = find_method(object.type, key.text->bytes))
    return make_method(method, object);
  if (object.is(Type::kNamespace) || object.is(Type::kLoop))
    return attribute(object, key.text->bytes);
  return make_undefined(fmt::format("'{}' of a {}", key.text->bytes, type_name(object)));
}

Value Interpreter::slice(Value object, const Expr& bounds) {
  const auto bound = [&](size_t i) {
    return bounds.operands[i] ? eval(*bounds.operands[i]) : Value::none();
  };
  const Value begin = bound(0), end = bound(1), stride = bound(2);
  if (object.is_undefined())
    fail("{} is undefined", object.text ? object.text->view() : std::string_view("a value"));
  if (object.is_listlike()) {
    const SliceRange range =
        slice_range(*this, begin, end, stride, static_cast<int64_t>(object.list->items.size()));
    std::vector<Value> items;
    for_slice(range, [&](size_t i) { items.push_back(object.list->items[i]); });
    step(1 + items.size() / 16);
    return make_list(std::move(items), object.type);
  }
  if (object.is_string()) {
    const Text& text = *object.text;
    scanned(text.size());
    const SliceRange range =
        slice_range(*this, begin, end, stride, static_cast<int64_t>(code_points(text)));
    if (range.step == 1) {
      if (range.begin >= range.end) return make(Text());
      return make(substring(text, offset_of(text, static_cast<size_t>(range.begin)),
                            offset_of(text, static_cast<size_t>(range.end))));
    }
    reserve((text.size() + 1) * sizeof(size_t));
    const std::vector<size_t> offsets = code_point_offsets(text);
    TextBuilder out;
    for_slice(range, [&](size_t i) { out.append(text, offsets[i], offsets[i + 1]); });
    return make(out.take());
  }
  return make_undefined(fmt::format("a slice of a {}", type_name(object)));
}

// ── arguments of natives ──

const Text& Interpreter::text_argument(const Arguments& arguments, size_t position,
                                       std::string_view name) {
  const Value* value = arguments.find(position, name);
  if (!value || !value->is_string())
    fail("the argument {} must be a str, not {}", name,
         value ? type_name(*value) : std::string_view("missing"));
  return *value->text;
}

int64_t Interpreter::integer_argument(const Arguments& arguments, size_t position,
                                      std::string_view name, int64_t fallback) {
  const Value* value = arguments.find(position, name);
  if (!value || value->is_none()) return fallback;
  if (!value->is_integer()) fail("the argument {} must be an int, not {}", name, type_name(*value));
  return value->as_integer();
}

bool Interpreter::bool_argument(const Arguments& arguments, size_t position, std::string_view name,
                                bool fallback) {
  const Value* value = arguments.find(position, name);
  return value ? truthy(*value) : fallback;
}

}  // namespace whit::jinja
