// Regular expressions over UTF-8 through Oniguruma, the engine whose dialect tokenizer.json is
// written in.
//
// Patterns come from model files and texts from requests, so every search has a retry and a stack
// limit: a pattern that backtracks without bound ends as an Error (kResource), not as a hung
// server.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

struct RegexMatch {
  size_t begin, end;
};

class Regex {
 public:
  // What searches need besides the pattern; reused between calls, owned by one thread.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Regex;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

  // `where` names the file and field in errors. Throws kInvalidData when the pattern does not
  // compile.
  Regex(std::string_view pattern, std::string_view where);
  // Matches `literal` itself.
  static Regex literal(std::string_view literal, std::string_view where);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // Non-overlapping matches of valid UTF-8 `text`, left to right; an empty match right after the
  // previous match is passed over. Safe to call from several threads.
  void find_all(std::string_view text, Scratch& scratch, std::vector<RegexMatch>& matches) const;
  bool matches_at_start(std::string_view text, Scratch& scratch) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit
