// Python's operations on values: truth, equality, order, str, repr and arithmetic.
#include <algorithm>
#include <cmath>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return (a % b != 0 && (a < 0) != (b < 0)) ? quotient - 1 : quotient;
}

}  // namespace

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

}  // namespace whit::jinja
