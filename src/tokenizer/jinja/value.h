// Values of the interpreter. They are small and trivially copyable; what they point to lives in an
// Arena until the rendering ends, so that cycles leak nothing and deep nesting destroys nothing
// recursively.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "tokenizer/jinja/text.h"

namespace whit::jinja {

enum class Type : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kUnsigned,  // an integer of a request that is above INT64_MAX; prints exactly, counts as a float
  kFloat,
  kString,
  kList,
  kTuple,
  kIterator,  // what map, select, … return: always true, no length, consumed once
  kDict,
  kNamespace,
  kLoop,
  kCallable,
};

struct List;
struct Dict;
struct Loop;
struct Callable;

struct Value {
  Type type = Type::kUndefined;
  union {
    bool boolean;
    int64_t integer;
    uint64_t natural;
    double real;
    const Text* text;  // kString; kUndefined: what is undefined, or null
    List* list;        // kList, kTuple, kIterator
    Dict* dict;        // kDict, kNamespace
    const Loop* loop;
    const Callable* callable;
  };

  Value() : text(nullptr) {}
  static Value none() { return of(Type::kNone, &Value::integer, int64_t{0}); }
  static Value of(bool value) { return of(Type::kBool, &Value::boolean, value); }
  static Value of(int64_t value) { return of(Type::kInt, &Value::integer, value); }
  static Value of(double value) { return of(Type::kFloat, &Value::real, value); }
  static Value of(const Text* value) { return of(Type::kString, &Value::text, value); }
  static Value of(Type type, List* value) { return of(type, &Value::list, value); }
  static Value of(Type type, Dict* value) { return of(type, &Value::dict, value); }
  static Value of(const Loop* value) { return of(Type::kLoop, &Value::loop, value); }
  static Value of(const Callable* value) { return of(Type::kCallable, &Value::callable, value); }
  static Value of_unsigned(uint64_t value) { return of(Type::kUnsigned, &Value::natural, value); }
  static Value undefined(const Text* what) { return of(Type::kUndefined, &Value::text, what); }

  bool is(Type other) const { return type == other; }
  bool is_string() const { return type == Type::kString; }
  bool is_undefined() const { return type == Type::kUndefined; }
  bool is_none() const { return type == Type::kNone; }
  bool is_integer() const { return type == Type::kInt || type == Type::kBool; }
  bool is_number() const { return is_integer() || type == Type::kFloat || type == Type::kUnsigned; }
  bool is_listlike() const { return type == Type::kList || type == Type::kTuple; }
  // Integers and booleans.
  int64_t as_integer() const { return type == Type::kBool ? boolean : integer; }
  // Numbers.
  double as_real() const {
    return type == Type::kFloat      ? real
           : type == Type::kUnsigned ? static_cast<double>(natural)
                                     : static_cast<double>(as_integer());
  }

 private:
  template <typename Member, typename T>
  static Value of(Type type, Member member, T value) {
    Value result;
    result.type = type;
    result.*member = value;
    return result;
  }
};

struct List {
  std::vector<Value> items;
  size_t consumed = 0;  // of an iterator
};

// Insertion-ordered; keys are strings, numbers, booleans, None and tuples of them.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  std::unordered_map<std::string, size_t> index;  // by key_of(); filled once there are many entries
};

struct Loop {
  const std::vector<Value>* items;
  size_t index = 0;
  mutable std::vector<Value> last_changed;  // arguments of loop.changed
  mutable bool changed_called = false;
};

class Interpreter;

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string_view, Value>> named;

  // The argument at `position` or called `name`; null: not given.
  const Value* find(size_t position, std::string_view name) const {
    if (position < positional.size()) return &positional[position];
    for (const auto& [key, value] : named)
      if (key == name) return &value;
    return nullptr;
  }
};

// Functions, methods and filters. `self` is a method's object or a filter's operand.
using Native = Value (*)(Interpreter&, Value self, const Arguments&);

struct Signature;
struct Stmt;
struct Scope;

struct Callable {
  Native native = nullptr;  // null: a macro or a caller
  Value self;
  const Stmt* definition = nullptr;
  Scope* scope = nullptr;  // where it was defined
};

// Variables of one level. A scope that a macro was defined in is not reused by the next iteration
// of a loop.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<int, Value>> variables;
  bool captured = false;
};

struct Arena {
  std::deque<Text> texts;
  std::deque<List> lists;
  std::deque<Dict> dicts;
  std::deque<Loop> loops;
  std::deque<Callable> callables;
  std::deque<Scope> scopes;
};

}  // namespace whit::jinja
