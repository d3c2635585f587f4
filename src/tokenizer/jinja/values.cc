// Values made: of texts, items and JSON; a dict's entries; the arguments of natives.
#include <cmath>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

// Dicts up to this size are searched linearly.
constexpr size_t kLinearEntries = 8;

}  // namespace

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
