// Python's attributes, subscripts and slices.
#include <algorithm>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

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

}  // namespace

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

}  // namespace whit::jinja
