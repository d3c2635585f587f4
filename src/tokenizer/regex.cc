#include "tokenizer/regex.h"

#include <oniguruma.h>

#include <algorithm>
#include <mutex>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

constexpr size_t kMaxPatternBytes = size_t{1} << 20;
// Retries of one search. Tokenizer patterns need at most a few per byte of one match; 10⁷ is
// Oniguruma's own default, about 0.2 s, and 16 per byte keeps legitimate multi-megabyte runs of one
// class legal.
constexpr unsigned long kBaseRetries = 10'000'000;
constexpr unsigned long kRetriesPerByte = 16;
// Backtrack entries (about 40 bytes each) of one search.
constexpr size_t kBaseStackEntries = size_t{1} << 20;
constexpr size_t kStackEntriesPerByte = 4;

void initialize_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    onig_initialize(encodings, 1);
    // Nested patterns recurse in the compiler; the library's own default (4096) needs megabytes of
    // stack.
    onig_set_parse_depth_limit(250);
  });
}

std::string describe(int code, const OnigErrorInfo* info = nullptr) {
  OnigUChar buffer[ONIG_MAX_ERROR_MESSAGE_LEN];
  const int length =
      info ? onig_error_code_to_str(buffer, code, info) : onig_error_code_to_str(buffer, code);
  return {reinterpret_cast<char*>(buffer), static_cast<size_t>(std::max(length, 0))};
}

const OnigUChar* chars(const char* text) { return reinterpret_cast<const OnigUChar*>(text); }

}  // namespace

struct Regex::Scratch::Impl {
  OnigMatchParam* param = onig_new_match_param();
  OnigRegion* region = onig_region_new();

  ~Impl() {
    onig_free_match_param(param);
    onig_region_free(region, 1);
  }
};

Regex::Scratch::Scratch() : impl_(std::make_unique<Impl>()) {}
Regex::Scratch::~Scratch() = default;

struct Regex::Impl {
  regex_t* regex = nullptr;
  std::string pattern, where;

  ~Impl() {
    if (regex) onig_free(regex);
  }

  // Position of the first match at or after `start`, ONIG_MISMATCH, or throws.
  int search(std::string_view text, size_t start, OnigRegion* region, OnigMatchParam* param,
             bool only_at_start = false) const {
    const OnigUChar* begin = chars(text.data());
    const OnigUChar* end = begin + text.size();
    const int result = only_at_start ? onig_match_with_param(regex, begin, end, begin, region,
                                                             ONIG_OPTION_NONE, param)
                                     : onig_search_with_param(regex, begin, end, begin + start, end,
                                                              region, ONIG_OPTION_NONE, param);
    if (result < ONIG_MISMATCH)
      throw Error(
          ErrorKind::kResource,
          "{}: the regular expression {} cannot be matched against a text of {} bytes within "
          "the limits: {}",
          where, pattern, text.size(), describe(result));
    return result;
  }

  void set_limits(OnigMatchParam* param, size_t bytes) const {
    const unsigned long retries = kBaseRetries + kRetriesPerByte * bytes;
    onig_set_retry_limit_in_match_of_match_param(param, retries);
    onig_set_retry_limit_in_search_of_match_param(param, retries);
    onig_set_match_stack_limit_size_of_match_param(
        param, static_cast<unsigned int>(
                   std::min<size_t>(kBaseStackEntries + kStackEntriesPerByte * bytes, UINT32_MAX)));
  }
};

Regex::Regex(std::string_view pattern, std::string_view where) : impl_(std::make_unique<Impl>()) {
  initialize_library();
  if (pattern.size() > kMaxPatternBytes || valid_utf8_prefix(pattern) != pattern.size())
    throw Error(ErrorKind::kInvalidData,
                "{}: a regular expression must be UTF-8 of at most {} bytes", where,
                kMaxPatternBytes);
  impl_->pattern = pattern;
  impl_->where = where;
  OnigErrorInfo info{};
  const OnigUChar* begin = chars(pattern.data());
  const int result = onig_new(&impl_->regex, begin, begin + pattern.size(), ONIG_OPTION_NONE,
                              ONIG_ENCODING_UTF8, OnigDefaultSyntax, &info);
  if (result != ONIG_NORMAL) {
    impl_->regex = nullptr;
    throw Error(ErrorKind::kInvalidData, "{}: the regular expression {} does not compile: {}",
                where, pattern, describe(result, &info));
  }
}

Regex Regex::literal(std::string_view literal, std::string_view where) {
  std::string pattern;
  for (const char c : literal) {
    if (std::string_view("\\.+*?()|[]{}^$#&-~").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return Regex(pattern, where);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

void Regex::find_all(std::string_view text, Scratch& scratch,
                     std::vector<RegexMatch>& matches) const {
  matches.clear();
  OnigMatchParam* param = scratch.impl_->param;
  OnigRegion* region = scratch.impl_->region;
  size_t position = 0;
  bool has_last = false;
  size_t last_end = 0;
  while (position <= text.size()) {
    impl_->set_limits(param, text.size() - position);
    if (impl_->search(text, position, region, param) == ONIG_MISMATCH) return;
    const size_t begin = static_cast<size_t>(region->beg[0]);
    const size_t end = static_cast<size_t>(region->end[0]);
    if (begin == end && has_last && end == last_end) {
      if (position >= text.size()) return;
      position += code_point_at(text, position).bytes;
      continue;
    }
    // \K can move a match's begin, look-behind cannot; either way a match never reaches behind the
    // last one.
    if (end < begin || begin < last_end) {
      position = std::max(position, last_end);
      if (position >= text.size()) return;
      position += code_point_at(text, position).bytes;
      continue;
    }
    matches.push_back({begin, end});
    position = last_end = end;
    has_last = true;
  }
}

bool Regex::matches_at_start(std::string_view text, Scratch& scratch) const {
  impl_->set_limits(scratch.impl_->param, text.size());
  return impl_->search(text, 0, nullptr, scratch.impl_->param, true) != ONIG_MISMATCH;
}

}  // namespace whit
