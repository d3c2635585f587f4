#include "tokenizer/jinja/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/error.h"
#include "tokenizer/jinja/lexer.h"
#include "tokenizer/unicode.h"

namespace whit::jinja {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;
// Recursion of this parser; a level of parentheses is about a dozen stack frames.
constexpr int kMaxNesting = 100;
// Depth of an expression tree, which bounds the interpreter's and the destructor's recursion.
constexpr int kMaxExprDepth = 300;

class Parser {
 public:
  Parser(std::string_view source, std::string_view where) : tokens_(tokenize(source, where)) {
    result_.where = where;
    result_.loop_symbol = result_.symbols.intern("loop");
    result_.caller_symbol = result_.symbols.intern("caller");
    result_.varargs_symbol = result_.symbols.intern("varargs");
    result_.kwargs_symbol = result_.symbols.intern("kwargs");
  }

  Template run() {
    result_.body = parse_block({});
    return std::move(result_);
  }

 private:
  struct Nesting {
    explicit Nesting(Parser& owner) : parser(owner) {
      if (++parser.nesting_ > kMaxNesting)
        throw Error(ErrorKind::kResource, "{}: template line {}: nested deeper than {} levels",
                    parser.result_.where, parser.current().line, kMaxNesting);
    }
    ~Nesting() { --parser.nesting_; }
    Parser& parser;
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

  // ── expressions, loosest first ──

  enum class Conditional { kAllowed, kNot };

  ExprPtr parse_expression(Conditional conditional = Conditional::kAllowed) {
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

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (is_name("or")) {
      const int line = current().line;
      next();
      left = make(ExprKind::kOr, line, "", std::move(left), parse_and());
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (is_name("and")) {
      const int line = current().line;
      next();
      left = make(ExprKind::kAnd, line, "", std::move(left), parse_not());
    }
    return left;
  }

  ExprPtr parse_not() {
    if (!is_name("not")) return parse_compare();
    const Nesting nesting(*this);
    const int line = current().line;
    next();
    return make(ExprKind::kNot, line, "", parse_not());
  }

  ExprPtr parse_compare() {
    static constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<",
                                                                   "<=", ">",  ">="};
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

  // Left-associative binary operators of one precedence.
  template <typename Next>
  ExprPtr parse_binary(std::initializer_list<std::string_view> operators, Next next_level) {
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

  ExprPtr parse_sum() {
    return parse_binary({"+", "-"}, [this] { return parse_concat(); });
  }

  ExprPtr parse_concat() {
    const int line = current().line;
    ExprPtr first = parse_product();
    if (!is_op("~")) return first;
    ExprPtr concat = make(ExprKind::kConcat, line, "", std::move(first));
    while (skip_op("~")) add(*concat, parse_product());
    return concat;
  }

  ExprPtr parse_product() {
    return parse_binary({"*", "/", "//", "%"}, [this] { return parse_power(); });
  }

  ExprPtr parse_power() {
    return parse_binary({"**"}, [this] { return parse_unary(true); });
  }

  ExprPtr parse_unary(bool with_filter) {
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

  ExprPtr parse_primary() {
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

  bool at_tuple_end(std::initializer_list<std::string_view> end_names) const {
    const TokenType type = current().type;
    if (type == TokenType::kVariableEnd || type == TokenType::kBlockEnd || is_op(")")) return true;
    return type == TokenType::kName &&
           std::find(end_names.begin(), end_names.end(), current().text) != end_names.end();
  }

  // One expression, or several with commas between as a tuple. `end_names` end it.
  ExprPtr parse_tuple(std::initializer_list<std::string_view> end_names = {},
                      Conditional conditional = Conditional::kAllowed,
                      bool in_parentheses = false) {
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

  ExprPtr parse_postfix(ExprPtr expr) {
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

  ExprPtr parse_subscript() {
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

  ExprPtr parse_call(ExprPtr callee) {
    ExprPtr call = make(ExprKind::kCall, current().line, "", std::move(callee));
    parse_arguments(*call);
    return call;
  }

  void parse_arguments(Expr& call) {
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

  ExprPtr parse_filters_and_tests(ExprPtr expr) {
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

  ExprPtr parse_filter(ExprPtr operand) {
    next();  // "|", or "filter" of a filter block
    ExprPtr filter = make(ExprKind::kFilter, current().line, expect_name(), std::move(operand));
    if (is_op("(")) parse_arguments(*filter);
    return filter;
  }

  ExprPtr parse_test(ExprPtr operand) {
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

  // ── statements ──

  // Up to a tag whose name is in `ends` (left as current token), or the template's end if there are
  // none.
  Block parse_block(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(*this);
    Block block;
    const int line = current().line;
    while (true) {
      const Token& token = current();
      if (token.type == TokenType::kEnd) {
        if (ends.size() > 0)
          fail(fmt::format("the tag opened on line {} is never closed: expected {}", line,
                           *ends.begin()));
        return block;
      }
      if (token.type == TokenType::kData) {
        auto data = statement(StmtKind::kData);
        data->text = Text(token.text);
        next();
        block.push_back(std::move(data));
      } else if (token.type == TokenType::kVariableBegin) {
        auto output = statement(StmtKind::kOutput);
        next();
        output->value = parse_tuple();
        if (current().type != TokenType::kVariableEnd)
          fail(fmt::format("expected }}}}, got {}", shown()));
        next();
        block.push_back(std::move(output));
      } else if (token.type == TokenType::kBlockBegin) {
        next();
        if (current().type != TokenType::kName)
          fail(fmt::format("expected a tag, got {}", shown()));
        for (const std::string_view end : ends)
          if (is_name(end)) return block;
        block.push_back(parse_statement());
        expect_block_end();
      } else {
        fail(fmt::format("unexpected {}", shown()));
      }
    }
  }

  std::unique_ptr<Stmt> statement(StmtKind kind) const {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = current().line;
    return stmt;
  }

  std::unique_ptr<Stmt> parse_statement() {
    const Nesting nesting(*this);
    const std::string tag = current().text;
    if (tag == "if") return parse_if();
    if (tag == "for") return parse_for();
    if (tag == "set") return parse_set();
    if (tag == "macro") return parse_macro();
    if (tag == "call") return parse_call_block();
    if (tag == "filter") return parse_filter_block();
    if (tag == "with") return parse_with();
    if (tag == "generation") {
      auto stmt = statement(StmtKind::kScope);
      next();
      stmt->body = parse_body("endgeneration");
      return stmt;
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) fail(fmt::format("{} outside of a loop", tag));
      auto stmt = statement(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue);
      next();
      return stmt;
    }
    static constexpr std::array<std::string_view, 9> kRefused = {
        "include", "import", "from", "extends", "block", "autoescape", "do", "trans", "debug"};
    if (std::find(kRefused.begin(), kRefused.end(), tag) != kRefused.end())
      throw Error(ErrorKind::kUnsupported, "{}: template line {}: the tag {} is not supported",
                  result_.where, current().line, tag);
    fail(fmt::format("unknown tag {}", tag));
  }

  // The body after a tag's head, and its end tag's name.
  Block parse_body(std::string_view end) {
    expect_block_end();
    Block body = parse_block({end});
    next();
    return body;
  }

  std::unique_ptr<Stmt> parse_if() {
    auto stmt = statement(StmtKind::kIf);
    next();
    while (true) {
      ExprPtr condition = parse_tuple({}, Conditional::kNot);
      expect_block_end();
      stmt->branches.emplace_back(std::move(condition), parse_block({"elif", "else", "endif"}));
      if (skip_name("elif")) continue;
      if (skip_name("else")) {
        expect_block_end();
        stmt->branches.emplace_back(nullptr, parse_block({"endif"}));
      }
      next();
      return stmt;
    }
  }

  // A name, or names with commas between, in parentheses or not.
  ExprPtr parse_target() {
    const int line = current().line;
    const bool parentheses = skip_op("(");
    ExprPtr target = make(ExprKind::kTuple, line);
    bool is_tuple = false;
    while (current().type == TokenType::kName || is_op("(")) {
      const Nesting nesting(*this);
      if (is_name("in") && !target->operands.empty()) break;
      if (is_op("(")) {
        add(*target, parse_target());
      } else {
        const std::string name = expect_name();
        add(*target, make_name(name, line));
      }
      if (!skip_op(",")) break;
      is_tuple = true;
    }
    if (parentheses) expect_op(")");
    if (target->operands.empty())
      fail(fmt::format("expected a name to assign to, got {}", shown()));
    return is_tuple ? std::move(target) : std::move(target->operands[0]);
  }

  std::unique_ptr<Stmt> parse_for() {
    auto stmt = statement(StmtKind::kFor);
    next();
    stmt->target = parse_target();
    if (!skip_name("in")) fail(fmt::format("expected in, got {}", shown()));
    stmt->value = parse_tuple({"recursive"}, Conditional::kNot);
    if (skip_name("if")) stmt->filter = parse_expression();
    if (is_name("recursive"))
      throw Error(ErrorKind::kUnsupported,
                  "{}: template line {}: recursive loops are not supported", result_.where,
                  stmt->line);
    expect_block_end();
    ++loops_;
    stmt->body = parse_block({"endfor", "else"});
    --loops_;
    if (skip_name("else"))
      stmt->else_body = parse_body("endfor");
    else
      next();
    return stmt;
  }

  std::unique_ptr<Stmt> parse_set() {
    auto stmt = statement(StmtKind::kSet);
    next();
    if (current().type == TokenType::kName && ahead().type == TokenType::kOperator &&
        ahead().text == ".") {
      const int line = current().line;
      ExprPtr object = make_name(expect_name(), line);
      next();
      stmt->target = make(ExprKind::kAttribute, line, expect_name(), std::move(object));
    } else {
      stmt->target = parse_target();
    }
    if (skip_op("=")) {
      stmt->value = parse_tuple();
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    while (is_op("|")) stmt->value = parse_filter(std::move(stmt->value));
    stmt->body = parse_body("endset");
    return stmt;
  }

  // Parses "(a, b=1)" if it is there, then the body of a macro or call block up to `end`.
  void parse_signature(Signature& signature) {
    if (!skip_op("(")) return;
    while (!is_op(")")) {
      if (!signature.parameters.empty()) expect_op(",");
      if (is_op(")")) break;
      const std::string name = expect_name();
      signature.parameters.push_back(result_.symbols.intern(name));
      signature.parameter_names.push_back(name);
      if (skip_op("="))
        signature.defaults.push_back(parse_expression());
      else if (!signature.defaults.empty())
        fail("a parameter without a default after one with a default");
    }
    expect_op(")");
  }

  void parse_macro_body(Stmt& stmt, std::string_view end) {
    const bool outer_varargs = uses_varargs_, outer_kwargs = uses_kwargs_;
    const int outer_loops = loops_;
    uses_varargs_ = uses_kwargs_ = false;
    loops_ = 0;
    stmt.body = parse_body(end);
    stmt.signature.uses_varargs = uses_varargs_;
    stmt.signature.uses_kwargs = uses_kwargs_;
    loops_ = outer_loops;
    uses_varargs_ = outer_varargs;
    uses_kwargs_ = outer_kwargs;
  }

  std::unique_ptr<Stmt> parse_macro() {
    auto stmt = statement(StmtKind::kMacro);
    next();
    stmt->signature.name = expect_name();
    stmt->symbol = result_.symbols.intern(stmt->signature.name);
    if (!is_op("(")) fail(fmt::format("expected '(', got {}", shown()));
    parse_signature(stmt->signature);
    parse_macro_body(*stmt, "endmacro");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_call_block() {
    auto stmt = statement(StmtKind::kCall);
    next();
    stmt->signature.name = "caller";
    parse_signature(stmt->signature);
    stmt->value = parse_expression();
    if (stmt->value->kind != ExprKind::kCall) fail("a call block needs a call");
    parse_macro_body(*stmt, "endcall");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_filter_block() {
    auto stmt = statement(StmtKind::kFilter);
    stmt->value = parse_filter(nullptr);
    while (is_op("|")) stmt->value = parse_filter(std::move(stmt->value));
    stmt->body = parse_body("endfilter");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_with() {
    auto stmt = statement(StmtKind::kWith);
    next();
    while (current().type != TokenType::kBlockEnd) {
      if (!stmt->assignments.empty()) expect_op(",");
      const int line = current().line;
      ExprPtr target = make_name(expect_name(), line);
      expect_op("=");
      stmt->assignments.emplace_back(std::move(target), parse_expression());
    }
    stmt->body = parse_body("endwith");
    return stmt;
  }

  std::vector<Token> tokens_;
  size_t pos_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  bool uses_varargs_ = false, uses_kwargs_ = false;
  Template result_;
};

}  // namespace

Template parse_template(std::string_view source, std::string_view where) {
  if (source.size() > kMaxSourceBytes)
    throw Error(ErrorKind::kResource, "{}: a template of {} bytes (limit {})", where, source.size(),
                kMaxSourceBytes);
  if (valid_utf8_prefix(source) != source.size())
    throw Error(ErrorKind::kInvalidData, "{}: the template is not UTF-8 from byte {} on", where,
                valid_utf8_prefix(source));
  return Parser(source, where).run();
}

}  // namespace whit::jinja
