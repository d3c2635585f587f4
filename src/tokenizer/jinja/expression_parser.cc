#include "tokenizer/jinja/expression_parser.h"

#include <array>

namespace whit::jinja {

ExpressionParser::ExpressionParser(std::string_view source, std::string_view where)
    : tokens_(tokenize(source, where)) {
  result_.where = where;
  result_.loop_symbol = result_.symbols.intern("loop");
  result_.caller_symbol = result_.symbols.intern("caller");
  result_.varargs_symbol = result_.symbols.intern("varargs");
  result_.kwargs_symbol = result_.symbols.intern("kwargs");
}

ExprPtr ExpressionParser::parse_expression(Conditional conditional) {
  const Nesting nesting(*this);
  if (conditional == Conditional::kNot) return parse_or();
  const int line = current().line;
  ExprPtr expr = parse_or();
  while (skip_name("if")) {
    ExprPtr condition = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    expr = make(ExprKind::kConditional, line, "", std::move(condition), std::move(expr),
                std::move(otherwise));
  }
  return expr;
}

ExprPtr ExpressionParser::parse_or() {
  ExprPtr left = parse_and();
  while (is_name("or")) {
    const int line = current().line;
    next();
    left = make(ExprKind::kOr, line, "", std::move(left), parse_and());
  }
  return left;
}

ExprPtr ExpressionParser::parse_and() {
  ExprPtr left = parse_not();
  while (is_name("and")) {
    const int line = current().line;
    next();
    left = make(ExprKind::kAnd, line, "", std::move(left), parse_not());
  }
  return left;
}

ExprPtr ExpressionParser::parse_not() {
  if (!is_name("not")) return parse_compare();
  const Nesting nesting(*this);
  const int line = current().line;
  next();
  return make(ExprKind::kNot, line, "", parse_not());
}

ExprPtr ExpressionParser::parse_compare() {
  static constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<", "<=", ">", ">="};
  const int line = current().line;
  ExprPtr first = parse_sum();
  ExprPtr compare;
  while (true) {
    std::string op;
    if (current().type == TokenType::kOperator &&
        std::find(kOperators.begin(), kOperators.end(), current().text) != kOperators.end()) {
      op = current().text;
      next();
    } else if (skip_name("in")) {
      op = "in";
    } else if (is_name("not") && ahead().type == TokenType::kName && ahead().text == "in") {
      next();
      next();
      op = "not in";
    } else {
      return compare ? std::move(compare) : std::move(first);
    }
    if (!compare) compare = make(ExprKind::kCompare, line, "", std::move(first));
    compare->operators.push_back(op);
    add(*compare, parse_sum());
  }
}

template <typename Next>
ExprPtr ExpressionParser::parse_binary(std::initializer_list<std::string_view> operators,
                                       Next next_level) {
  ExprPtr left = next_level();
  while (current().type == TokenType::kOperator &&
         std::find(operators.begin(), operators.end(), current().text) != operators.end()) {
    const int line = current().line;
    std::string op = current().text;
    next();
    left = make(ExprKind::kBinary, line, std::move(op), std::move(left), next_level());
  }
  return left;
}

ExprPtr ExpressionParser::parse_sum() {
  return parse_binary({"+", "-"}, [this] { return parse_concat(); });
}

ExprPtr ExpressionParser::parse_concat() {
  const int line = current().line;
  ExprPtr first = parse_product();
  if (!is_op("~")) return first;
  ExprPtr concat = make(ExprKind::kConcat, line, "", std::move(first));
  while (skip_op("~")) add(*concat, parse_product());
  return concat;
}

ExprPtr ExpressionParser::parse_product() {
  return parse_binary({"*", "/", "//", "%"}, [this] { return parse_power(); });
}

ExprPtr ExpressionParser::parse_power() {
  return parse_binary({"**"}, [this] { return parse_unary(true); });
}

ExprPtr ExpressionParser::parse_unary(bool with_filter) {
  const Nesting nesting(*this);
  const int line = current().line;
  ExprPtr expr;
  if (skip_op("-"))
    expr = make(ExprKind::kNegative, line, "", parse_unary(false));
  else if (skip_op("+"))
    expr = make(ExprKind::kPositive, line, "", parse_unary(false));
  else
    expr = parse_primary();
  expr = parse_postfix(std::move(expr));
  return with_filter ? parse_filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::parse_primary() {
  const Token& token = current();
  const int line = token.line;
  if (token.type == TokenType::kName) {
    const std::string name = token.text;
    next();
    if (name == "true" || name == "True" || name == "false" || name == "False") {
      ExprPtr expr = make(ExprKind::kBool, line);
      expr->boolean = name == "true" || name == "True";
      return expr;
    }
    if (name == "none" || name == "None") return make(ExprKind::kNone, line);
    return make_name(name, line);
  }
  if (token.type == TokenType::kString) {
    ExprPtr expr = make(ExprKind::kString, line);
    std::string value;
    for (; current().type == TokenType::kString; next()) value += current().text;
    expr->text = Text(value);
    return expr;
  }
  if (token.type == TokenType::kInteger || token.type == TokenType::kFloat) {
    ExprPtr expr =
        make(token.type == TokenType::kInteger ? ExprKind::kInteger : ExprKind::kFloat, line);
    expr->integer = token.integer;
    expr->real = token.real;
    next();
    return expr;
  }
  if (skip_op("(")) {
    ExprPtr expr = parse_tuple({}, Conditional::kAllowed, true);
    expect_op(")");
    return expr;
  }
  if (skip_op("[")) {
    ExprPtr list = make(ExprKind::kList, line);
    while (!is_op("]")) {
      if (!list->operands.empty()) expect_op(",");
      if (is_op("]")) break;
      add(*list, parse_expression());
    }
    expect_op("]");
    return list;
  }
  if (skip_op("{")) {
    ExprPtr dict = make(ExprKind::kDict, line);
    while (!is_op("}")) {
      if (!dict->operands.empty()) expect_op(",");
      if (is_op("}")) break;
      add(*dict, parse_expression());
      expect_op(":");
      add(*dict, parse_expression());
    }
    expect_op("}");
    return dict;
  }
  fail(fmt::format("expected an expression, got {}", shown()));
}

bool ExpressionParser::at_tuple_end(std::initializer_list<std::string_view> end_names) const {
  const TokenType type = current().type;
  if (type == TokenType::kVariableEnd || type == TokenType::kBlockEnd || is_op(")")) return true;
  return type == TokenType::kName &&
         std::find(end_names.begin(), end_names.end(), current().text) != end_names.end();
}

ExprPtr ExpressionParser::parse_tuple(std::initializer_list<std::string_view> end_names,
                                      Conditional conditional, bool in_parentheses) {
  const int line = current().line;
  ExprPtr tuple = make(ExprKind::kTuple, line);
  bool is_tuple = false;
  while (!at_tuple_end(end_names)) {
    add(*tuple, parse_expression(conditional));
    if (!skip_op(",")) break;
    is_tuple = true;
  }
  if (is_tuple) return tuple;
  if (!tuple->operands.empty()) return std::move(tuple->operands[0]);
  if (in_parentheses) return tuple;
  fail(fmt::format("expected an expression, got {}", shown()));
}

ExprPtr ExpressionParser::parse_postfix(ExprPtr expr) {
  while (true) {
    const int line = current().line;
    if (skip_op(".")) {
      if (current().type == TokenType::kInteger) {
        ExprPtr index = make(ExprKind::kInteger, line);
        index->integer = current().integer;
        next();
        expr = make(ExprKind::kItem, line, "", std::move(expr), std::move(index));
      } else {
        expr = make(ExprKind::kAttribute, line, expect_name(), std::move(expr));
      }
    } else if (skip_op("[")) {
      ExprPtr subscript = parse_subscript();
      if (is_op(",")) {
        ExprPtr tuple = make(ExprKind::kTuple, line, "", std::move(subscript));
        while (skip_op(",")) add(*tuple, parse_subscript());
        for (const ExprPtr& part : tuple->operands)
          if (part->kind == ExprKind::kSlice) fail_at(line, "a slice in a tuple of subscripts");
        subscript = std::move(tuple);
      }
      expect_op("]");
      expr = make(ExprKind::kItem, line, "", std::move(expr), std::move(subscript));
    } else if (is_op("(")) {
      expr = parse_call(std::move(expr));
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_subscript() {
  const int line = current().line;
  ExprPtr parts[3];
  if (!is_op(":")) {
    parts[0] = parse_expression();
    if (!is_op(":")) return std::move(parts[0]);
  }
  for (int i = 1; i < 3 && skip_op(":"); ++i)
    if (!is_op(":") && !is_op("]") && !is_op(",")) parts[i] = parse_expression();
  return make(ExprKind::kSlice, line, "", std::move(parts[0]), std::move(parts[1]),
              std::move(parts[2]));
}

ExprPtr ExpressionParser::parse_call(ExprPtr callee) {
  ExprPtr call = make(ExprKind::kCall, current().line, "", std::move(callee));
  parse_arguments(*call);
  return call;
}

void ExpressionParser::parse_arguments(Expr& call) {
  expect_op("(");
  bool first = true;
  while (!is_op(")")) {
    if (!first) expect_op(",");
    if (is_op(")")) break;
    first = false;
    if (is_op("*") || is_op("**"))
      throw Error(ErrorKind::kUnsupported,
                  "{}: template line {}: * and ** arguments are not supported", result_.where,
                  current().line);
    if (current().type == TokenType::kName && ahead().type == TokenType::kOperator &&
        ahead().text == "=") {
      std::string name = expect_name();
      next();
      ExprPtr value = parse_expression();
      grow(call, *value);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.named.empty()) fail("a positional argument after a named one");
      add(call, parse_expression());
    }
  }
  expect_op(")");
}

ExprPtr ExpressionParser::parse_filters_and_tests(ExprPtr expr) {
  while (true) {
    if (is_op("|"))
      expr = parse_filter(std::move(expr));
    else if (is_name("is"))
      expr = parse_test(std::move(expr));
    else if (is_op("("))
      expr = parse_call(std::move(expr));
    else
      return expr;
  }
}

ExprPtr ExpressionParser::parse_filter(ExprPtr operand) {
  next();  // "|", or "filter" of a filter block
  ExprPtr filter = make(ExprKind::kFilter, current().line, expect_name(), std::move(operand));
  if (is_op("(")) parse_arguments(*filter);
  return filter;
}

ExprPtr ExpressionParser::parse_test(ExprPtr operand) {
  const int line = current().line;
  next();  // "is"
  const bool negated = skip_name("not");
  ExprPtr test = make(ExprKind::kTest, line, expect_name(), std::move(operand));
  if (is_op("(")) {
    parse_arguments(*test);
  } else {
    const TokenType type = current().type;
    const bool name =
        type == TokenType::kName && !is_name("else") && !is_name("or") && !is_name("and");
    if (name && is_name("is")) fail("tests cannot be chained with is");
    // A name that follows a test is its argument, except where it goes on with the expression
    // around it.
    if (name || type == TokenType::kString || type == TokenType::kInteger ||
        type == TokenType::kFloat || is_op("[") || is_op("{"))
      add(*test, parse_postfix(parse_primary()));
  }
  return negated ? make(ExprKind::kNot, line, "", std::move(test)) : std::move(test);
}

}  // namespace whit::jinja
