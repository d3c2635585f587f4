// Finds stop strings in text that arrives in pieces, and holds back only what may begin one.
//
// The match that ends first in the stream stops it; of those ending at the same byte the longest.
// So the result does not depend on how the text is cut into pieces. Held back is the longest end of
// the text that is a beginning of some stop string (Knuth, Morris and Pratt 1977: one state per
// string).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

enum class StopText { kRemove, kKeep };  // is the stop string itself part of the output?

class StopMatcher {
 public:
  static constexpr size_t kMaxStrings = 64, kMaxBytes = 4096;  // of all together

  // Throws kInvalidArgument for an empty stop string, too many or too long ones.
  explicit StopMatcher(std::vector<std::string> stop_strings,
                       StopText stop_text = StopText::kRemove);

  // Takes the next piece; returns what may be shown now. After a stop: nothing.
  std::string push(std::string_view piece);
  // The text has ended without a stop: returns what was held back.
  std::string finish();

  bool stopped() const { return stopped_by_ >= 0; }
  // The stop string that was found; only when stopped().
  const std::string& stop_string() const { return strings_[stopped_by_].text; }
  // Bytes returned so far: where the whole text is to be cut.
  int64_t kept_bytes() const { return kept_bytes_; }

 private:
  struct StopString {
    std::string text;
    std::vector<size_t> failure;  // KMP: longest proper border of each beginning
    size_t matched = 0;
  };

  std::vector<StopString> strings_;
  StopText stop_text_;
  std::string held_;
  int stopped_by_ = -1;
  int64_t kept_bytes_ = 0;
};

}  // namespace whit
