#include "tokenizer/jinja/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/error.h"
#include "tokenizer/jinja/expression_parser.h"
#include "tokenizer/unicode.h"

namespace whit::jinja {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;

class Parser : ExpressionParser {
 public:
  Parser(std::string_view source, std::string_view where) : ExpressionParser(source, where) {}

  Template run() {
    result_.body = parse_block({});
    return std::move(result_);
  }

 private:
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

  int loops_ = 0;
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
