#include "runtime/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace whit {

StopMatcher::StopMatcher(std::vector<std::string> stop_strings, StopText stop_text)
    : stop_text_(stop_text) {
  size_t bytes = 0;
  for (const std::string& text : stop_strings) {
    if (text.empty())
      throw Error(ErrorKind::kInvalidArgument, "stop strings: one is empty; leave it out");
    bytes += text.size();
  }
  if (stop_strings.size() > kMaxStrings || bytes > kMaxBytes)
    throw Error(ErrorKind::kInvalidArgument,
                "stop strings: {} of {} bytes together; at most {} of {} bytes are allowed",
                stop_strings.size(), bytes, kMaxStrings, kMaxBytes);
  for (std::string& text : stop_strings) {
    std::vector<size_t> failure(text.size() + 1, 0);
    for (size_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = failure[border];
      if (text[i] == text[border]) ++border;
      failure[i + 1] = border;
    }
    strings_.push_back({std::move(text), std::move(failure)});
  }
}

std::string StopMatcher::push(std::string_view piece) {
  if (stopped()) return {};
  for (const char c : piece) {
    held_ += c;
    for (size_t i = 0; i < strings_.size(); ++i) {
      StopString& stop = strings_[i];
      while (stop.matched > 0 && stop.text[stop.matched] != c)
        stop.matched = stop.failure[stop.matched];
      if (stop.text[stop.matched] == c) ++stop.matched;
      if (stop.matched < stop.text.size()) continue;
      if (!stopped() || stop.text.size() > stop_string().size()) stopped_by_ = static_cast<int>(i);
    }
    if (stopped()) break;
  }
  size_t shown = held_.size();
  if (!stopped()) {
    size_t longest = 0;
    for (const StopString& stop : strings_) longest = std::max(longest, stop.matched);
    shown -= longest;
  } else if (stop_text_ == StopText::kRemove) {
    shown -= stop_string().size();
  }
  std::string result = held_.substr(0, shown);
  held_.erase(0, shown);
  kept_bytes_ += static_cast<int64_t>(result.size());
  return result;
}

std::string StopMatcher::finish() {
  if (stopped()) return {};
  kept_bytes_ += static_cast<int64_t>(held_.size());
  return std::exchange(held_, {});
}

}  // namespace whit
