#include "tokenizer/jinja/interpreter.h"

#include <algorithm>
#include <array>

namespace whit::jinja {

Interpreter::Interpreter(const Template& program, const Limits& limits, std::time_t now)
    : program_(program),
      limits_(limits),
      now_(now),
      root_(program.symbols.names.size()),
      root_set_(program.symbols.names.size(), false) {
  scope_ = new_scope(nullptr);
}

void Interpreter::fail(ErrorKind kind, const std::string& problem) const {
  throw Error(kind, "{}: template line {}: {}", program_.where, line_, problem);
}

void Interpreter::step(size_t cost) {
  steps_ += static_cast<int64_t>(std::min(cost, size_t{1} << 40));
  if (steps_ > limits_.steps)
    fail(ErrorKind::kResource,
         fmt::format("rendering takes more than {} steps (limit)", limits_.steps));
}

void Interpreter::charge(size_t bytes) {
  value_bytes_ += static_cast<int64_t>(std::min(bytes, size_t{1} << 40));
  if (value_bytes_ > limits_.value_bytes)
    fail(ErrorKind::kResource,
         fmt::format("rendering makes more than {} bytes of values (limit)", limits_.value_bytes));
}

void Interpreter::reserve(size_t bytes) const {
  if (bytes > static_cast<size_t>(limits_.value_bytes - value_bytes_))
    fail(ErrorKind::kResource,
         fmt::format("rendering needs more than {} bytes of values (limit)", limits_.value_bytes));
}

Interpreter::Depth::Depth(Interpreter& owner) : interpreter(owner) {
  if (interpreter.depth_ >= interpreter.limits_.depth)
    interpreter.fail(
        ErrorKind::kResource,
        fmt::format("rendering nests deeper than {} levels (limit)", interpreter.limits_.depth));
  ++interpreter.depth_;
}

Scope* Interpreter::new_scope(Scope* parent) {
  charge(sizeof(Scope) + 64);
  arena_.scopes.push_back({parent, {}, false});
  return &arena_.scopes.back();
}

void Interpreter::define(const std::string& name, Value value) {
  const int symbol = program_.symbols.find(name);
  if (symbol < 0) return;
  root_[static_cast<size_t>(symbol)] = value;
  root_set_[static_cast<size_t>(symbol)] = true;
}

Text Interpreter::run() {
  TextBuilder out;
  out_ = &out;
  exec(program_.body);
  out_ = nullptr;
  return out.take();
}

// ── statements ──

Interpreter::Flow Interpreter::exec(const Block& block) {
  for (const auto& stmt : block) {
    const Flow flow = exec(*stmt);
    if (flow != Flow::kNormal) return flow;
  }
  return Flow::kNormal;
}

void Interpreter::output(Value value) {
  const size_t before = out_->size();
  append_text(value, *out_);
  output_bytes_ += static_cast<int64_t>(out_->size() - before);
  if (output_bytes_ > limits_.output_bytes)
    fail(ErrorKind::kResource,
         fmt::format("the output is longer than {} bytes (limit)", limits_.output_bytes));
}

Interpreter::Flow Interpreter::exec(const Stmt& stmt) {
  const Depth depth(*this);
  step();
  line_ = stmt.line;
  switch (stmt.kind) {
    case StmtKind::kData:
      output(Value::of(&stmt.text));
      break;
    case StmtKind::kOutput:
      output(eval(*stmt.value));
      break;
    case StmtKind::kIf:
      for (const auto& [condition, body] : stmt.branches)
        if (!condition || truthy(eval(*condition))) return exec(body);
      break;
    case StmtKind::kFor:
      return exec_for(stmt);
    case StmtKind::kSet:
      assign(*stmt.target, eval(*stmt.value));
      break;
    case StmtKind::kSetBlock: {
      Value value = capture(stmt.body);
      if (stmt.value) value = eval_filter(*stmt.value, value);
      assign(*stmt.target, value);
      break;
    }
    case StmtKind::kMacro: {
      charge(sizeof(Callable));
      arena_.callables.push_back({nullptr, Value(), &stmt, scope_});
      for (Scope* scope = scope_; scope && !scope->captured; scope = scope->parent)
        scope->captured = true;
      set_variable(*scope_, stmt.symbol, Value::of(&arena_.callables.back()));
      break;
    }
    case StmtKind::kCall:
      exec_call(stmt);
      break;
    case StmtKind::kFilter:
      output(eval_filter(*stmt.value, capture(stmt.body)));
      break;
    case StmtKind::kWith:
    case StmtKind::kScope: {
      Scope* outer = scope_;
      Scope* inner = new_scope(outer);
      for (const auto& [target, value] : stmt.assignments)
        set_variable(*inner, target->symbol, eval(*value));
      scope_ = inner;
      const Flow flow = exec(stmt.body);
      scope_ = outer;
      return flow;
    }
    case StmtKind::kBreak:
      return Flow::kBreak;
    case StmtKind::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec_for(const Stmt& stmt) {
  std::vector<Value> items = iterate(eval(*stmt.value));
  Scope* outer = scope_;
  if (stmt.filter) {
    scope_ = new_scope(outer);
    std::vector<Value> kept;
    for (const Value item : items) {
      scope_->variables.clear();
      assign(*stmt.target, item);
      if (truthy(eval(*stmt.filter))) kept.push_back(item);
    }
    items = std::move(kept);
    scope_ = outer;
  }
  if (items.empty()) return exec(stmt.else_body);

  const Value sequence = make_list(std::move(items));
  arena_.loops.push_back({&sequence.list->items, 0, {}, false});
  Loop& loop = arena_.loops.back();
  const Value loop_value = Value::of(&loop);
  Scope* inner = new_scope(outer);
  for (; loop.index < sequence.list->items.size(); ++loop.index) {
    step();
    if (inner->captured) inner = new_scope(outer);
    inner->variables.clear();
    scope_ = inner;
    assign(*stmt.target, sequence.list->items[loop.index]);
    set_variable(*inner, program_.loop_symbol, loop_value);
    const Flow flow = exec(stmt.body);
    scope_ = outer;
    if (flow == Flow::kBreak) break;
  }
  loop.index = std::min(loop.index, sequence.list->items.size() - 1);
  return Flow::kNormal;
}

void Interpreter::exec_call(const Stmt& stmt) {
  charge(sizeof(Callable));
  arena_.callables.push_back({nullptr, Value(), &stmt, scope_});
  const Value caller = Value::of(&arena_.callables.back());
  const Expr& call_expr = *stmt.value;
  const Value callee = eval(*call_expr.operands[0]);
  Arguments arguments = eval_arguments(call_expr);
  arguments.named.emplace_back("caller", caller);
  output(call(callee, arguments));
}

Value Interpreter::capture(const Block& block) {
  TextBuilder captured;
  TextBuilder* outer_out = out_;
  Scope* outer = scope_;
  out_ = &captured;
  scope_ = new_scope(outer);
  exec(block);
  scope_ = outer;
  out_ = outer_out;
  return make(captured.take());
}

void Interpreter::set_variable(Scope& scope, int symbol, Value value) {
  if (!scope.parent) {
    root_[static_cast<size_t>(symbol)] = value;
    root_set_[static_cast<size_t>(symbol)] = true;
    return;
  }
  for (auto& [known, old] : scope.variables) {
    if (known != symbol) continue;
    old = value;
    return;
  }
  scope.variables.emplace_back(symbol, value);
}

void Interpreter::assign(const Expr& target, Value value) {
  if (target.kind == ExprKind::kName) return set_variable(*scope_, target.symbol, value);
  if (target.kind == ExprKind::kAttribute) {
    const Value object = eval(*target.operands[0]);
    if (!object.is(Type::kNamespace))
      fail("cannot assign to attribute {} of {}: only a namespace has attributes that can be set",
           target.name, type_name(object));
    if (target.name.starts_with('_')) fail("a namespace has no attribute {}", target.name);
    return set_item(*object.dict, make(target.name), value);
  }
  const std::vector<Value> values = iterate(value);
  if (values.size() != target.operands.size())
    fail("cannot unpack {} values into {} names", values.size(), target.operands.size());
  for (size_t i = 0; i < values.size(); ++i) assign(*target.operands[i], values[i]);
}

// ── expressions ──

Value Interpreter::lookup(const Expr& name) {
  for (const Scope* scope = scope_; scope->parent; scope = scope->parent)
    for (const auto& [symbol, value] : scope->variables)
      if (symbol == name.symbol) return value;
  if (root_set_[static_cast<size_t>(name.symbol)]) return root_[static_cast<size_t>(name.symbol)];
  if (const Native global = find_global(name.name)) {
    const Value value = make_method(global, Value());
    define(name.name, value);
    return value;
  }
  return make_undefined(name.name);
}

Value Interpreter::eval(const Expr& expr) {
  const Depth depth(*this);
  step();
  line_ = expr.line;
  switch (expr.kind) {
    case ExprKind::kNone:
      return Value::none();
    case ExprKind::kBool:
      return Value::of(expr.boolean);
    case ExprKind::kInteger:
      return Value::of(expr.integer);
    case ExprKind::kFloat:
      return Value::of(expr.real);
    case ExprKind::kString:
      return Value::of(&expr.text);
    case ExprKind::kName:
      return lookup(expr);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      std::vector<Value> items;
      items.reserve(expr.operands.size());
      for (const ExprPtr& operand : expr.operands) items.push_back(eval(*operand));
      return make_list(std::move(items), expr.kind == ExprKind::kList ? Type::kList : Type::kTuple);
    }
    case ExprKind::kDict:
      return eval_dict(expr);
    case ExprKind::kAttribute:
      return attribute(eval(*expr.operands[0]), expr.name);
    case ExprKind::kItem:
      return eval_item(expr);
    case ExprKind::kSlice:
      fail("a slice outside of a subscript");
    case ExprKind::kCall:
      return eval_call(expr);
    case ExprKind::kFilter:
      return eval_filter(expr, Value());
    case ExprKind::kTest: {
      const Value operand = eval(*expr.operands[0]);
      return Value::of(apply_test(expr.name, operand, eval_arguments(expr)));
    }
    case ExprKind::kNot:
      return Value::of(!truthy(eval(*expr.operands[0])));
    case ExprKind::kNegative:
      return negate(eval(*expr.operands[0]));
    case ExprKind::kPositive: {
      const Value value = eval(*expr.operands[0]);
      if (!value.is_number()) fail("bad operand for unary +: {}", type_name(value));
      return value.is(Type::kBool) ? Value::of(value.as_integer()) : value;
    }
    case ExprKind::kBinary: {
      const Value left = eval(*expr.operands[0]);
      const Value right = eval(*expr.operands[1]);
      line_ = expr.line;
      return expr.name == "+" ? add(left, right) : binary(expr.name, left, right);
    }
    case ExprKind::kConcat:
      return eval_concat(expr);
    case ExprKind::kCompare:
      return eval_compare(expr);
    case ExprKind::kAnd: {
      const Value left = eval(*expr.operands[0]);
      return truthy(left) ? eval(*expr.operands[1]) : left;
    }
    case ExprKind::kOr: {
      const Value left = eval(*expr.operands[0]);
      return truthy(left) ? left : eval(*expr.operands[1]);
    }
    case ExprKind::kConditional:
      if (truthy(eval(*expr.operands[0]))) return eval(*expr.operands[1]);
      return expr.operands[2] ? eval(*expr.operands[2])
                              : make_undefined("the inline if-expression without an else");
  }
  return Value();
}

Value Interpreter::negate(Value value) {
  if (value.is_integer()) {
    int64_t result;
    if (__builtin_sub_overflow(int64_t{0}, value.as_integer(), &result)) fail("integer overflow");
    return Value::of(result);
  }
  if (value.is_number()) return Value::of(-value.as_real());
  fail("bad operand for unary -: {}", type_name(value));
}

Value Interpreter::eval_dict(const Expr& expr) {
  const Value dict = make_dict();
  for (size_t i = 0; i + 1 < expr.operands.size(); i += 2) {
    const Value key = eval(*expr.operands[i]);
    set_item(*dict.dict, key, eval(*expr.operands[i + 1]));
  }
  return dict;
}

Value Interpreter::eval_concat(const Expr& expr) {
  TextBuilder out;
  for (const ExprPtr& operand : expr.operands) append_text(eval(*operand), out);
  return make(out.take());
}

Value Interpreter::eval_compare(const Expr& expr) {
  Value left = eval(*expr.operands[0]);
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    const Value right = eval(*expr.operands[i + 1]);
    const std::string& op = expr.operators[i];
    line_ = expr.line;
    bool holds;
    if (op == "==")
      holds = equal(left, right);
    else if (op == "!=")
      holds = !equal(left, right);
    else if (op == "in")
      holds = contains(right, left);
    else if (op == "not in")
      holds = !contains(right, left);
    else if (op == "<")
      holds = compare(left, right) < 0;
    else if (op == "<=")
      holds = compare(left, right) <= 0;
    else if (op == ">")
      holds = compare(left, right) > 0;
    else
      holds = compare(left, right) >= 0;
    if (!holds) return Value::of(false);
    left = right;
  }
  return Value::of(true);
}

Arguments Interpreter::eval_arguments(const Expr& expr) {
  Arguments arguments;
  for (size_t i = 1; i < expr.operands.size(); ++i)
    arguments.positional.push_back(eval(*expr.operands[i]));
  for (const auto& [name, value] : expr.named) arguments.named.emplace_back(name, eval(*value));
  return arguments;
}

Value Interpreter::eval_call(const Expr& expr) {
  const Value callee = eval(*expr.operands[0]);
  const Arguments arguments = eval_arguments(expr);
  line_ = expr.line;
  return call(callee, arguments);
}

Value Interpreter::eval_filter(const Expr& expr, Value operand) {
  const Depth depth(*this);
  if (expr.operands[0]) {
    // A chain on a filter block's body ends in a filter without an operand.
    const Expr& inner = *expr.operands[0];
    operand = inner.kind == ExprKind::kFilter ? eval_filter(inner, operand) : eval(inner);
  }
  const Arguments arguments = eval_arguments(expr);
  line_ = expr.line;
  return apply_filter(expr.name, operand, arguments);
}

Value Interpreter::eval_item(const Expr& expr) {
  const Value object = eval(*expr.operands[0]);
  const Expr& key = *expr.operands[1];
  return key.kind == ExprKind::kSlice ? slice(object, key) : item(object, eval(key));
}

Value Interpreter::call(Value callee, const Arguments& arguments) {
  const Depth depth(*this);
  if (callee.is(Type::kLoop)) fail(ErrorKind::kUnsupported, "recursive loops are not supported");
  if (callee.is_undefined()) {
    fail("{} is undefined and cannot be called",
         callee.text ? callee.text->view() : std::string_view("a value"));
  }
  if (!callee.is(Type::kCallable)) fail("{} cannot be called", type_name(callee));
  const Callable& callable = *callee.callable;
  return callable.native ? callable.native(*this, callable.self, arguments)
                         : call_macro(callable, arguments);
}

Value Interpreter::call_macro(const Callable& macro, const Arguments& arguments) {
  const Signature& signature = macro.definition->signature;
  Scope* outer = scope_;
  TextBuilder* outer_out = out_;
  Scope* inner = new_scope(macro.scope);
  const size_t count = signature.parameters.size();
  const size_t first_default = count - signature.defaults.size();
  std::vector<bool> used(arguments.named.size(), false);
  scope_ = inner;
  for (size_t i = 0; i < count; ++i) {
    const Value* given = i < arguments.positional.size() ? &arguments.positional[i] : nullptr;
    for (size_t n = 0; n < arguments.named.size(); ++n) {
      if (arguments.named[n].first != signature.parameter_names[i]) continue;
      if (given)
        fail("macro {} got two values for {}", signature.name, signature.parameter_names[i]);
      given = &arguments.named[n].second;
      used[n] = true;
    }
    Value value;
    if (given)
      value = *given;
    else if (i >= first_default)
      value = eval(*signature.defaults[i - first_default]);
    else
      value = make_undefined(signature.parameter_names[i]);
    set_variable(*inner, signature.parameters[i], value);
  }
  const Value extra_named = make_dict();
  for (size_t n = 0; n < arguments.named.size(); ++n) {
    if (used[n]) continue;
    if (arguments.named[n].first == "caller")
      set_variable(*inner, program_.caller_symbol, arguments.named[n].second);
    else if (signature.uses_kwargs)
      set_item(*extra_named.dict, make(arguments.named[n].first), arguments.named[n].second);
    else
      fail("macro {} takes no argument {}", signature.name, arguments.named[n].first);
  }
  if (signature.uses_kwargs) set_variable(*inner, program_.kwargs_symbol, extra_named);
  if (signature.uses_varargs) {
    const auto begin = arguments.positional.begin();
    const auto taken = static_cast<ptrdiff_t>(std::min(count, arguments.positional.size()));
    set_variable(*inner, program_.varargs_symbol,
                 make_list({begin + taken, arguments.positional.end()}, Type::kTuple));
  } else if (arguments.positional.size() > count) {
    fail("macro {} takes at most {} arguments, got {}", signature.name, count,
         arguments.positional.size());
  }
  TextBuilder captured;
  out_ = &captured;
  exec(macro.definition->body);
  out_ = outer_out;
  scope_ = outer;
  return make(captured.take());
}

Value Interpreter::apply_filter(const std::string& name, Value operand,
                                const Arguments& arguments) {
  const Native filter = find_filter(name);
  if (!filter) fail(ErrorKind::kUnsupported, fmt::format("the filter {} is not supported", name));
  return filter(*this, operand, arguments);
}

bool Interpreter::apply_test(const std::string& name, Value operand, const Arguments& arguments) {
  const Test test = find_test(name);
  if (!test) fail(ErrorKind::kUnsupported, fmt::format("the test {} is not supported", name));
  return test(*this, operand, arguments);
}

}  // namespace whit::jinja
