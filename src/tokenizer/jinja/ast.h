// The syntax tree of a template. Names are numbered, so that scopes are small arrays of numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tokenizer/jinja/text.h"

namespace whit::jinja {

enum class ExprKind {
  kNone,
  kBool,
  kInteger,
  kFloat,
  kString,
  kName,
  kList,       // operands
  kTuple,      // operands
  kDict,       // operands: key, value, key, value, …
  kAttribute,  // operands[0].name
  kItem,       // operands[0][operands[1]]
  kSlice,      // operands: begin, end, step; null where left out. Only as operands[1] of kItem
  kCall,       // operands[0](positional operands[1…], named)
  kFilter,     // operands[0]|name(…); operands[0] is null in filter blocks
  kTest,       // operands[0] is name(…)
  kNot,
  kNegative,
  kPositive,
  kBinary,   // operands[0] name operands[1]
  kConcat,   // operands joined by ~
  kCompare,  // operands[0] operators[0] operands[1] operators[1] …
  kAnd,
  kOr,
  kConditional,  // operands: condition, then, else (null: undefined)
};

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind;
  int line = 0;
  int depth = 1;
  std::string name;  // attribute, filter, test, operator; variable
  int symbol = -1;   // kName
  bool boolean = false;
  int64_t integer = 0;
  double real = 0;
  Text text;
  std::vector<ExprPtr> operands;
  std::vector<std::pair<std::string, ExprPtr>> named;
  std::vector<std::string> operators;
};

enum class StmtKind {
  kData,    // text
  kOutput,  // value
  kIf,      // branches: condition (null: else) and body
  kFor,
  kSet,       // target = value
  kSetBlock,  // target = body, through the filter in value if there is one
  kMacro,
  kCall,    // value is the call; body is the caller
  kFilter,  // value is a filter chain on body
  kWith,    // targets, values, body
  kScope,   // body in a scope of its own ({% generation %})
  kBreak,
  kContinue,
};

struct Stmt;
using Block = std::vector<std::unique_ptr<Stmt>>;

// What a macro or a call block declares.
struct Signature {
  std::string name;
  std::vector<int> parameters;  // symbols
  std::vector<std::string> parameter_names;
  std::vector<ExprPtr> defaults;  // of the last parameters
  bool uses_varargs = false, uses_kwargs = false;
};

struct Stmt {
  StmtKind kind;
  int line = 0;
  Text text;
  ExprPtr value;    // kFor: what is iterated over
  ExprPtr target;   // kName, kTuple, or kAttribute of a name (namespace assignment)
  ExprPtr filter;   // kFor: the condition after `if`
  int symbol = -1;  // kMacro: its name
  Signature signature;
  Block body, else_body;
  std::vector<std::pair<ExprPtr, Block>> branches;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;
};

struct Symbols {
  std::unordered_map<std::string, int> numbers;
  std::vector<std::string> names;

  int intern(const std::string& name) {
    const auto [entry, added] = numbers.emplace(name, static_cast<int>(names.size()));
    if (added) names.push_back(name);
    return entry->second;
  }
  // −1: the template does not mention it.
  int find(const std::string& name) const {
    const auto found = numbers.find(name);
    return found == numbers.end() ? -1 : found->second;
  }
};

struct Template {
  std::string where;
  Symbols symbols;
  Block body;
  int loop_symbol, caller_symbol, varargs_symbol, kwargs_symbol;
};

}  // namespace whit::jinja
