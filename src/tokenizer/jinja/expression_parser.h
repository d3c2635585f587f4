// Expressions of a template: a cursor over its tokens, and one function for each precedence.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tokenizer/jinja/ast.h"
#include "tokenizer/jinja/lexer.h"

namespace whit::jinja {

class ExpressionParser {
 protected:
  // Recursion of this parser; a level of parentheses is about a dozen stack frames.
  static constexpr int kMaxNesting = 100;
  // Depth of an expression tree, which bounds the interpreter's and the destructor's recursion.
  static constexpr int kMaxExprDepth = 300;

  ExpressionParser(std::string_view source, std::string_view where);

  struct Nesting {
    explicit Nesting(ExpressionParser& owner) : parser(owner) {
      if (++parser.nesting_ > kMaxNesting)
        throw Error(ErrorKind::kResource, "{}: template line {}: nested deeper than {} levels",
                    parser.result_.where, parser.current().line, kMaxNesting);
    }
    ~Nesting() { --parser.nesting_; }
    ExpressionParser& parser;
  };

  const Token& current() const { return tokens_[pos_]; }
  const Token& ahead() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }
  void next() {
    if (pos_ + 1 < tokens_.size()) ++pos_;
  }

  [[noreturn]] void fail(std::string_view problem) const { fail_at(current().line, problem); }
  [[noreturn]] void fail_at(int line, std::string_view problem) const {
    throw Error(ErrorKind::kInvalidData, "{}: template line {}: {}", result_.where, line, problem);
  }
  std::string shown() const {
    switch (current().type) {
      case TokenType::kEnd:
        return "the end of the template";
      case TokenType::kVariableEnd:
        return "}}";
      case TokenType::kBlockEnd:
        return "%}";
      default:
        return "'" + current().text + "'";
    }
  }

  bool is_op(std::string_view op) const {
    return current().type == TokenType::kOperator && current().text == op;
  }
  bool is_name(std::string_view name) const {
    return current().type == TokenType::kName && current().text == name;
  }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    next();
    return true;
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) fail(fmt::format("expected '{}', got {}", op, shown()));
  }
  std::string expect_name() {
    if (current().type != TokenType::kName) fail(fmt::format("expected a name, got {}", shown()));
    std::string name = current().text;
    next();
    return name;
  }
  void expect_block_end() {
    if (current().type != TokenType::kBlockEnd) fail(fmt::format("expected %}}, got {}", shown()));
    next();
  }

  ExprPtr make(ExprKind kind, int line) {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }
  void add(Expr& parent, ExprPtr child) {
    if (child) grow(parent, *child);
    parent.operands.push_back(std::move(child));
  }
  void grow(Expr& parent, const Expr& child) {
    parent.depth = std::max(parent.depth, child.depth + 1);
    if (parent.depth > kMaxExprDepth)
      throw Error(ErrorKind::kResource, "{}: template line {}: an expression deeper than {} levels",
                  result_.where, parent.line, kMaxExprDepth);
  }
  template <typename... Children>
  ExprPtr make(ExprKind kind, int line, std::string name, Children... children) {
    ExprPtr expr = make(kind, line);
    expr->name = std::move(name);
    (add(*expr, std::move(children)), ...);
    return expr;
  }
  ExprPtr make_name(const std::string& name, int line) {
    ExprPtr expr = make(ExprKind::kName, line, name);
    expr->symbol = result_.symbols.intern(name);
    if (name == "varargs") uses_varargs_ = true;
    if (name == "kwargs") uses_kwargs_ = true;
    return expr;
  }

  enum class Conditional { kAllowed, kNot };

  ExprPtr parse_expression(Conditional conditional = Conditional::kAllowed);
  // One expression, or several with commas between as a tuple. `end_names` end it.
  ExprPtr parse_tuple(std::initializer_list<std::string_view> end_names = {},
                      Conditional conditional = Conditional::kAllowed, bool in_parentheses = false);
  ExprPtr parse_filter(ExprPtr operand);

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
  bool uses_varargs_ = false, uses_kwargs_ = false;
  Template result_;

 private:
  // Loosest first.
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  ExprPtr parse_compare();
  // Left-associative binary operators of one precedence.
  template <typename Next>
  ExprPtr parse_binary(std::initializer_list<std::string_view> operators, Next next_level);
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filter);
  ExprPtr parse_primary();
  bool at_tuple_end(std::initializer_list<std::string_view> end_names) const;
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_subscript();
  ExprPtr parse_call(ExprPtr callee);
  void parse_arguments(Expr& call);
  ExprPtr parse_filters_and_tests(ExprPtr expr);
  ExprPtr parse_test(ExprPtr operand);
};

}  // namespace whit::jinja
