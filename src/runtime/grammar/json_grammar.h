// The grammar of JSON texts, in the pieces that schemas put together: no space between tokens, one
// blank, or a new line with indentation; characters escaped only where they must be; numbers of at
// most 15 digits before and after the point.
#pragma once

#include <bitset>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/grammar/grammar.h"

namespace whit {

class JsonGrammar {
 public:
  using Expr = GrammarBuilder::Expr;
  using Rule = GrammarBuilder::Rule;
  static constexpr int kMaxDigits = 15;

  JsonGrammar();

  Expr space() { return builder.call(space_); }
  Expr token(std::string_view text) { return builder.literal(text); }
  // A rule of its own keeps automata small where schemas repeat.
  Expr as_rule(const std::string& name, Expr expr);

  // One of the characters within a JSON string: as it is, or as its escape.
  Expr write_escaped(const std::vector<CodePointRange>& ranges);
  // From `least` to `most` of any characters; most < 0: no bound.
  Expr characters(int64_t least, int64_t most);
  Expr quoted(Expr inside) { return builder.sequence({token("\""), inside, token("\"")}); }

  // ".…" that is not zero.
  Expr fraction();
  // Whole numbers from least to most, both ≥ 0.
  Expr naturals(int64_t least, int64_t most);

  Expr any_string();
  Expr any_integer();
  Expr any_number();
  Expr any_object();
  Expr any_value();
  Expr object_of(Expr key, Expr value);
  // `first` items, then from min to max in all, of the same kind; max < 0: no bound.
  Expr list_of(Expr item, const std::vector<Expr>& first, int64_t min, int64_t max);

  GrammarBuilder builder;

 private:
  template <typename Make>
  Rule rule(const std::string& name, const Make& make) {
    const Rule id = builder.add_rule(name);
    builder.define(id, make());
    return id;
  }
  Expr digits(int least, int most);
  Expr natural();
  // Decimal numbers from `least` to `most`, of the same number of digits.
  Expr digits_between(const std::string& least, const std::string& most);

  Rule space_ = -1, character_ = -1, any_string_ = -1, any_value_ = -1, any_object_ = -1;
};

}  // namespace whit
