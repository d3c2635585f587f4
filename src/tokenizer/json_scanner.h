// A forward-only reader of JSON text for the two huge members of tokenizer.json (vocab and merges),
// which a document tree would make several times slower to load. Everything else goes through
// base/json.h.
//
// All errors are kInvalidData with the byte offset.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace whit {

class JsonScanner {
 public:
  JsonScanner(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  // Loops: `for (bool more = s.begin_object(); more; more = s.next_member()) { s.key(); …value… }`.
  bool begin_object();  // false when empty (and then consumed)
  bool next_member();   // after a value: false at the closing brace
  bool begin_array();
  bool next_element();
  // A member's name followed by its colon. The view is valid until the next call.
  std::string_view key();
  std::string_view string();
  int64_t integer();
  char peek();  // first character of the next value; 0 at the end
  // The extent of the next value, checked for balance only.
  std::string_view raw_value();
  void expect_end();

  [[noreturn]] void fail(std::string_view problem) const;

 private:
  void skip_space();
  bool take(char c);
  void expect(char c);
  std::string_view escaped_string(size_t begin);
  char32_t hex4();

  std::string_view text_, where_;
  size_t pos_ = 0;
  std::string scratch_;
};

}  // namespace whit
