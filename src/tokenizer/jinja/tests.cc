// The tests of `is`.
#include <algorithm>

#include "tokenizer/jinja/interpreter.h"
#include "tokenizer/jinja/strings.h"

namespace whit::jinja {
namespace {

using Run = Interpreter;

const Value& operand(Run& run, const Arguments& arguments) {
  if (arguments.positional.size() != 1) run.fail("this test takes one argument");
  return arguments.positional[0];
}

int64_t integer(Run& run, Value value) {
  if (!value.is_integer()) run.fail("this test needs an int, not {}", run.type_name(value));
  return value.as_integer();
}

bool is_iterable(Value value) {
  switch (value.type) {
    case Type::kUndefined:
    case Type::kString:
    case Type::kList:
    case Type::kTuple:
    case Type::kIterator:
    case Type::kDict:
    case Type::kLoop:
      return true;
    default:
      return false;
  }
}

bool is_sequence(Value value) {
  return is_iterable(value) && !value.is(Type::kIterator) && !value.is(Type::kLoop);
}

// Some cased character, and all cased ones of this case.
bool all_cased(Run& run, Value value, bool upper) {
  const Text& text = run.to_text(value);
  run.scanned(text.size());
  const Text same = change_case(text, upper ? Case::kUpper : Case::kLower);
  const Text other = change_case(text, upper ? Case::kLower : Case::kUpper);
  return same.bytes == text.bytes && other.bytes != text.bytes;
}

bool same_object(Value a, Value b) {
  if (a.type != b.type) return false;
  switch (a.type) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kBool:
      return a.boolean == b.boolean;
    case Type::kFloat:
      return a.real == b.real;
    case Type::kString:
      return a.text->bytes == b.text->bytes;
    default:
      return a.integer == b.integer;  // the number, or the pointer's bits
  }
}

struct Entry {
  std::string_view name;
  Test test;
};

constexpr Entry kTests[] = {
    {"defined", [](Run&, Value v, const Arguments&) { return !v.is_undefined(); }},
    {"undefined", [](Run&, Value v, const Arguments&) { return v.is_undefined(); }},
    {"none", [](Run&, Value v, const Arguments&) { return v.is_none(); }},
    {"boolean", [](Run&, Value v, const Arguments&) { return v.is(Type::kBool); }},
    {"true", [](Run&, Value v, const Arguments&) { return v.is(Type::kBool) && v.boolean; }},
    {"false", [](Run&, Value v, const Arguments&) { return v.is(Type::kBool) && !v.boolean; }},
    {"integer",
     [](Run&, Value v, const Arguments&) { return v.is(Type::kInt) || v.is(Type::kUnsigned); }},
    {"float", [](Run&, Value v, const Arguments&) { return v.is(Type::kFloat); }},
    {"number", [](Run&, Value v, const Arguments&) { return v.is_number(); }},
    {"string", [](Run&, Value v, const Arguments&) { return v.is_string(); }},
    {"mapping", [](Run&, Value v, const Arguments&) { return v.is(Type::kDict); }},
    {"iterable", [](Run&, Value v, const Arguments&) { return is_iterable(v); }},
    {"sequence", [](Run&, Value v, const Arguments&) { return is_sequence(v); }},
    {"callable",
     [](Run&, Value v, const Arguments&) { return v.is(Type::kCallable) || v.is(Type::kLoop); }},
    {"escaped", [](Run&, Value v, const Arguments&) { return v.is_string() && v.text->markup; }},
    {"lower", [](Run& run, Value v, const Arguments&) { return all_cased(run, v, false); }},
    {"upper", [](Run& run, Value v, const Arguments&) { return all_cased(run, v, true); }},
    {"odd", [](Run& run, Value v, const Arguments&) { return (integer(run, v) & 1) != 0; }},
    {"even", [](Run& run, Value v, const Arguments&) { return (integer(run, v) & 1) == 0; }},
    {"divisibleby",
     [](Run& run, Value v, const Arguments& a) {
       const int64_t divisor = integer(run, operand(run, a));
       if (divisor == 0) run.fail("division by zero");
       return divisor == -1 || integer(run, v) % divisor == 0;
     }},
    {"in", [](Run& run, Value v, const Arguments& a) { return run.contains(operand(run, a), v); }},
    {"sameas",
     [](Run& run, Value v, const Arguments& a) { return same_object(v, operand(run, a)); }},
    {"filter",
     [](Run&, Value v, const Arguments&) { return v.is_string() && find_filter(v.text->bytes); }},
    {"test",
     [](Run&, Value v, const Arguments&) { return v.is_string() && find_test(v.text->bytes); }},
    {"==", [](Run& run, Value v, const Arguments& a) { return run.equal(v, operand(run, a)); }},
    {"!=", [](Run& run, Value v, const Arguments& a) { return !run.equal(v, operand(run, a)); }},
    {"<",
     [](Run& run, Value v, const Arguments& a) { return run.compare(v, operand(run, a)) < 0; }},
    {"<=",
     [](Run& run, Value v, const Arguments& a) { return run.compare(v, operand(run, a)) <= 0; }},
    {">",
     [](Run& run, Value v, const Arguments& a) { return run.compare(v, operand(run, a)) > 0; }},
    {">=",
     [](Run& run, Value v, const Arguments& a) { return run.compare(v, operand(run, a)) >= 0; }},
};

constexpr std::pair<std::string_view, std::string_view> kAliases[] = {
    {"eq", "=="}, {"equalto", "=="}, {"ne", "!="},         {"lt", "<"},  {"lessthan", "<"},
    {"le", "<="}, {"gt", ">"},       {"greaterthan", ">"}, {"ge", ">="},
};

}  // namespace

Test find_test(std::string_view name) {
  for (const auto& [alias, target] : kAliases)
    if (alias == name) name = target;
  for (const Entry& entry : kTests)
    if (entry.name == name) return entry.test;
  return nullptr;
}

}  // namespace whit::jinja
