#include "tokenizer/jinja/text.h"

#include <algorithm>
#include <utility>

namespace whit::jinja {

Text Text::marked(std::string_view text) {
  Text result(text);
  if (!text.empty()) result.flips.push_back(0);
  return result;
}

bool Text::marked_at(size_t position) const {
  return (std::upper_bound(flips.begin(), flips.end(), position) - flips.begin()) % 2 != 0;
}

void TextBuilder::append(std::string_view bytes, bool marked) {
  if (bytes.empty()) return;
  if (marked != marked_) {
    text_.flips.push_back(text_.bytes.size());
    marked_ = marked;
  }
  text_.bytes += bytes;
}

void TextBuilder::append(const Text& text, size_t begin, size_t end) {
  if (begin >= end) return;
  auto flip = std::upper_bound(text.flips.begin(), text.flips.end(), begin);
  bool marked = (flip - text.flips.begin()) % 2 != 0;
  const std::string_view bytes = text.bytes;
  while (begin < end) {
    const size_t stop = flip == text.flips.end() ? end : std::min(end, *flip);
    append(bytes.substr(begin, stop - begin), marked);
    marked = !marked;
    begin = stop;
    if (flip != text.flips.end()) ++flip;
  }
}

Text TextBuilder::take() {
  marked_ = false;
  return std::exchange(text_, Text());
}

}  // namespace whit::jinja
