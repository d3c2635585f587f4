// Runs a template's syntax tree with Python's value semantics.
//
// A tree walk with hard limits: steps, depth, bytes of values, bytes of output. Nothing in a
// template can reach beyond its arguments. Filters, tests and methods are tables of functions over
// this class.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/json.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/value.h"

namespace whit::jinja {

struct Limits {
  int64_t steps = 20'000'000;              // expressions evaluated, plus one per 64 bytes scanned
  int64_t value_bytes = int64_t{1} << 28;  // made while rendering
  int64_t output_bytes = int64_t{1} << 26;
  int depth = 1000;  // nested evaluations; about 0.5 kB of stack each
};

class Interpreter {
 public:
  Interpreter(const Template& program, const Limits& limits, std::time_t now);
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // A global variable; JSON strings are marked, but for the roles of messages (see
  // chat_template.h).
  void define(const std::string& name, Value value);
  Text run();

  // ── errors and limits ──
  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    fail(ErrorKind::kInvalidData, fmt::format(format, std::forward<Args>(args)...));
  }
  [[noreturn]] void fail(ErrorKind kind, const std::string& problem) const;
  void step(size_t cost = 1);
  void scanned(size_t bytes) { step(1 + bytes / 64); }
  void charge(size_t bytes);
  // Checks that temporary memory of this size is within the limit, without counting it.
  void reserve(size_t bytes) const;

  // One level of nested evaluation.
  struct Depth {
    explicit Depth(Interpreter& owner);
    ~Depth() { --interpreter.depth_; }
    Interpreter& interpreter;
  };

  // ── making values ──
  Value make(Text text);
  Value make(std::string_view trusted) { return make(Text(trusted)); }
  Value make_list(std::vector<Value> items, Type type = Type::kList);
  Value make_dict(Type type = Type::kDict);
  Value make_method(Native native, Value self);
  Value make_undefined(std::string_view what);
  Value from_json(const Json& json, bool marked);
  void set_item(Dict& dict, Value key, Value value);

  // ── Python's operations ──
  bool truthy(Value value) const;
  bool equal(Value a, Value b);
  // Negative, zero, positive; throws where Python cannot order the two.
  int compare(Value a, Value b);
  bool contains(Value container, Value item);
  size_t length(Value value);                       // len()
  std::vector<Value> iterate(Value value);          // list(); consumes iterators
  const Text& to_text(Value value);                 // str()
  void append_text(Value value, TextBuilder& out);  // str()
  void append_repr(Value value, TextBuilder& out);  // repr()
  Value add(Value a, Value b);
  Value binary(std::string_view op, Value a, Value b);
  Value attribute(Value object, const std::string& name);
  Value item(Value object, Value key);
  const Value* find_item(const Dict& dict, Value key);
  Value call(Value callee, const Arguments& arguments);
  Value apply_filter(const std::string& name, Value operand, const Arguments& arguments);
  bool apply_test(const std::string& name, Value operand, const Arguments& arguments);
  std::string_view type_name(Value value) const;

  // Arguments of natives, by position or name, with Python's conversions.
  const Text& text_argument(const Arguments& arguments, size_t position, std::string_view name);
  int64_t integer_argument(const Arguments& arguments, size_t position, std::string_view name,
                           int64_t fallback);
  bool bool_argument(const Arguments& arguments, size_t position, std::string_view name,
                     bool fallback);

  std::time_t now() const { return now_; }
  int depth() const { return depth_; }

 private:
  enum class Flow { kNormal, kBreak, kContinue };

  Value eval(const Expr& expr);
  Value eval_compare(const Expr& expr);
  Value eval_call(const Expr& expr);
  Value eval_filter(const Expr& expr, Value operand);
  Value eval_item(const Expr& expr);
  Value eval_dict(const Expr& expr);
  Value eval_concat(const Expr& expr);
  Value negate(Value value);
  Arguments eval_arguments(const Expr& expr);
  Value slice(Value object, const Expr& bounds);
  Value lookup(const Expr& name);

  Flow exec(const Block& block);
  Flow exec(const Stmt& stmt);
  Flow exec_for(const Stmt& stmt);
  void exec_call(const Stmt& stmt);
  void assign(const Expr& target, Value value);
  void output(Value value);
  Value capture(const Block& block);
  Value call_macro(const Callable& macro, const Arguments& arguments);
  std::string key_of(Value key);
  void set_variable(Scope& scope, int symbol, Value value);
  Scope* new_scope(Scope* parent);

  const Template& program_;
  Limits limits_;
  std::time_t now_;
  Arena arena_;
  Scope* scope_;
  TextBuilder* out_ = nullptr;
  int64_t steps_ = 0, value_bytes_ = 0, output_bytes_ = 0;
  int depth_ = 0;
  int line_ = 0;
  std::vector<Value> root_;  // by symbol
  std::vector<bool> root_set_;
};

// The tables that the interpreter looks names up in; null: not there.
Native find_filter(std::string_view name);
Native find_global(std::string_view name);
// Methods of strings, lists, dicts and loops.
Native find_method(Type type, std::string_view name);
using Test = bool (*)(Interpreter&, Value, const Arguments&);
Test find_test(std::string_view name);

// str.format() and the % operator.
Value format_braces(Interpreter&, const Text& format, const Arguments&);
Value format_percent(Interpreter&, const Text& format, Value arguments);

// Python's str(float).
std::string float_text(double value);
// json.dumps with transformers' defaults.
struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false, indented = false;
  std::string indent;
  std::string item_separator = ", ", key_separator = ": ";
};
void append_json(Interpreter&, Value, const JsonStyle&, TextBuilder& out);

}  // namespace whit::jinja
