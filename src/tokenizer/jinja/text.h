// Strings that remember where each byte came from: the template (trusted) or a request (marked).
//
// Every string operation of the interpreter is made of copying ranges, so marks survive slicing,
// joining, replacing, upper-casing and JSON quoting, and the rendered text can be cut into trusted
// and untrusted segments.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace whit::jinja {

struct Text {
  std::string bytes;  // valid UTF-8
  // Byte positions, ascending, where the mark changes; text starts unmarked. Empty: all of it is
  // trusted.
  std::vector<size_t> flips;
  // The value went through |safe or |escape: `+` escapes what is added to it, as markupsafe.Markup
  // does.
  bool markup = false;

  Text() = default;
  explicit Text(std::string_view trusted) : bytes(trusted) {}
  static Text marked(std::string_view text);

  size_t size() const { return bytes.size(); }
  std::string_view view() const { return bytes; }
  bool marked_at(size_t position) const;
  size_t memory() const { return sizeof(Text) + bytes.size() + flips.size() * sizeof(size_t); }
};

class TextBuilder {
 public:
  void append(const Text& text) { append(text, 0, text.size()); }
  void append(const Text& text, size_t begin, size_t end);
  void append(std::string_view bytes, bool marked);
  void append(std::string_view trusted) { append(trusted, false); }
  size_t size() const { return text_.size(); }
  const Text& text() const { return text_; }
  Text take();

 private:
  Text text_;
  bool marked_ = false;  // the mark at the end
};

}  // namespace whit::jinja
