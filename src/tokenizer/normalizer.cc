#include "tokenizer/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <functional>

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

// Builds a MarkedText from pieces of another.
class Rewriter {
 public:
  explicit Rewriter(const MarkedText& source) : source_(source) {
    out_.text.reserve(source.text.size());
    out_.marks.reserve(source.marks.size());
  }
  void copy(size_t begin, size_t end) {
    out_.text.append(source_.text, begin, end - begin);
    if (marked()) out_.marks.append(source_.marks, begin, end - begin);
  }
  // `text` takes the place of source bytes [begin, end); an insertion (begin == end) sides with its
  // neighbour.
  void replace(size_t begin, size_t end, std::string_view text) {
    out_.text += text;
    if (!marked()) return;
    const size_t last = std::min(std::max(end, begin + 1), source_.marks.size());
    const bool mark = std::any_of(
        source_.marks.begin() + static_cast<ptrdiff_t>(std::min(begin, last)),
        source_.marks.begin() + static_cast<ptrdiff_t>(last), [](char m) { return m != 0; });
    out_.marks.append(text.size(), mark ? '\1' : '\0');
  }
  MarkedText take() { return std::move(out_); }

 private:
  bool marked() const { return !source_.marks.empty(); }
  const MarkedText& source_;
  MarkedText out_;
};

// Applies `map` (appends what becomes of a character) to each character.
template <typename Map>
void map_characters(MarkedText& text, Map map) {
  Rewriter out(text);
  std::string mapped;
  for (size_t pos = 0; pos < text.text.size();) {
    const CodePoint c = code_point_at(text.text, pos);
    mapped.clear();
    map(c, std::string_view(text.text).substr(pos, c.bytes), mapped);
    out.replace(pos, pos + c.bytes, mapped);
    pos += c.bytes;
  }
  text = out.take();
}

// Normalizes a span. utf8proc's own driver sorts combining marks in quadratic time, so the steps
// are taken here: decompose each character, sort runs of marks stably by combining class, compose.
void normalize_span(std::string_view text, int options, std::vector<utf8proc_int32_t>& buffer,
                    std::string& out) {
  buffer.clear();
  const auto flags = static_cast<utf8proc_option_t>(options);
  int boundary = UTF8PROC_BOUNDCLASS_START;
  for (size_t pos = 0; pos < text.size();) {
    const CodePoint c = code_point_at(text, pos);
    pos += c.bytes;
    utf8proc_int32_t decomposed[32];  // the longest decomposition in Unicode has 18 characters
    const utf8proc_ssize_t count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c.value),
                                                           decomposed, 32, flags, &boundary);
    if (count < 0 || count > 32)
      buffer.push_back(static_cast<utf8proc_int32_t>(c.value));
    else
      buffer.insert(buffer.end(), decomposed, decomposed + count);
  }
  const auto combining_class = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  for (size_t i = 0; i < buffer.size();) {
    if (combining_class(buffer[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < buffer.size() && combining_class(buffer[end]) != 0) ++end;
    std::stable_sort(buffer.begin() + static_cast<ptrdiff_t>(i),
                     buffer.begin() + static_cast<ptrdiff_t>(end),
                     [&](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  utf8proc_ssize_t length = static_cast<utf8proc_ssize_t>(buffer.size());
  if (options & UTF8PROC_COMPOSE) length = utf8proc_normalize_utf32(buffer.data(), length, flags);
  for (utf8proc_ssize_t i = 0; i < length; ++i)
    append_utf8(static_cast<char32_t>(buffer[static_cast<size_t>(i)]), out);
}

// Whether the decomposition of the character at `pos` begins with a mark, which may compose with
// what precedes.
bool begins_with_mark(std::string_view text, size_t pos, int options) {
  utf8proc_int32_t decomposed[32];
  int boundary = UTF8PROC_BOUNDCLASS_START;
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(code_point_at(text, pos).value),
                              decomposed, 32, static_cast<utf8proc_option_t>(options), &boundary);
  return count > 0 && utf8proc_get_property(decomposed[0])->combining_class != 0;
}

// An ASCII character never composes with what precedes it, so text may be cut before each one.
void normalize_unicode(MarkedText& text, int options) {
  const std::string& source = text.text;
  const auto is_ascii = [&](size_t i) { return static_cast<unsigned char>(source[i]) < 0x80; };
  Rewriter out(text);
  std::vector<utf8proc_int32_t> buffer;
  std::string normalized;
  for (size_t pos = 0; pos < source.size();) {
    size_t end = pos;
    while (end < source.size() && is_ascii(end)) ++end;
    if (end == source.size()) {
      out.copy(pos, end);
      break;
    }
    const size_t begin = end > pos && begins_with_mark(source, end, options) ? end - 1 : end;
    out.copy(pos, begin);
    while (end < source.size() && !is_ascii(end)) ++end;
    normalized.clear();
    const std::string_view span = std::string_view(source).substr(begin, end - begin);
    normalize_span(span, options, buffer, normalized);
    if (normalized == span) {
      out.copy(begin, end);
    } else {
      // The ASCII character before the span is part of it only to be composed with: unchanged, it
      // keeps its own mark.
      const size_t kept =
          is_ascii(begin) && !normalized.empty() && normalized[0] == source[begin] ? 1 : 0;
      out.copy(begin, begin + kept);
      out.replace(begin + kept, end, std::string_view(normalized).substr(kept));
    }
    pos = end;
  }
  text = out.take();
}

void strip(MarkedText& text, bool left, bool right) {
  const std::string& source = text.text;
  size_t begin = 0, end = source.size();
  while (left && begin < end) {
    const CodePoint c = code_point_at(source, begin);
    if (!is_whitespace(c.value)) break;
    begin += c.bytes;
  }
  while (right && end > begin) {
    size_t start = end - 1;
    while (start > begin && (static_cast<unsigned char>(source[start]) & 0xC0) == 0x80) --start;
    if (!is_whitespace(code_point_at(source, start).value)) break;
    end = start;
  }
  Rewriter out(text);
  out.copy(begin, end);
  text = out.take();
}

}  // namespace

struct Normalizer::Step {
  std::function<void(MarkedText&)> run;
};

Normalizer::Normalizer() = default;
Normalizer::~Normalizer() = default;
Normalizer::Normalizer(Normalizer&&) noexcept = default;
Normalizer& Normalizer::operator=(Normalizer&&) noexcept = default;

Normalizer::Normalizer(const Json& json, std::string_view where) {
  if (!json.is_null()) add(json, where);
}

void Normalizer::add(const Json& json, std::string_view where) {
  const std::string type = json_get<std::string>(json, "type", where);
  const auto push = [&](std::function<void(MarkedText&)> run) {
    steps_.push_back(std::make_unique<Step>(Step{std::move(run)}));
  };
  const auto push_form = [&](int options) {
    push([options](MarkedText& text) { normalize_unicode(text, options); });
  };
  if (type == "Sequence") {
    const auto found = json.find("normalizers");
    if (found == json.end() || !found->is_array())
      throw Error(ErrorKind::kInvalidData, "{}: Sequence needs a list \"normalizers\"", where);
    for (const Json& entry : *found) add(entry, where);
  } else if (type == "NFC") {
    push_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  } else if (type == "NFD") {
    push_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  } else if (type == "NFKC") {
    push_form(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  } else if (type == "NFKD") {
    push_form(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  } else if (type == "Lowercase") {
    push([](MarkedText& text) {
      map_characters(text, [](CodePoint c, std::string_view, std::string& out) {
        append_lower(c.value, out);
      });
    });
  } else if (type == "StripAccents") {
    push([](MarkedText& text) {
      map_characters(text, [](CodePoint c, std::string_view source, std::string& out) {
        if (!is_combining_mark(c.value)) out += source;
      });
    });
  } else if (type == "ByteLevel") {
    push([](MarkedText& text) {
      map_characters(text, [](CodePoint, std::string_view source, std::string& out) {
        append_byte_level(source, out);
      });
    });
  } else if (type == "Replace") {
    auto pattern = std::make_shared<Regex>(parse_pattern(json, where));
    push([pattern, content = json_get<std::string>(json, "content", where)](MarkedText& text) {
      Regex::Scratch scratch;
      std::vector<RegexMatch> matches;
      if (text.text.empty()) return;
      pattern->find_all(text.text, scratch, matches);
      if (matches.empty()) return;
      Rewriter out(text);
      size_t pos = 0;
      for (const RegexMatch& match : matches) {
        out.copy(pos, match.begin);
        out.replace(match.begin, match.end, content);
        pos = match.end;
      }
      out.copy(pos, text.text.size());
      text = out.take();
    });
  } else if (type == "Prepend") {
    push([prefix = json_get<std::string>(json, "prepend", where)](MarkedText& text) {
      if (text.text.empty()) return;
      Rewriter out(text);
      out.replace(0, 0, prefix);
      out.copy(0, text.text.size());
      text = out.take();
    });
  } else if (type == "Strip") {
    push([left = json_get_or<bool>(json, "strip_left", true, where),
          right = json_get_or<bool>(json, "strip_right", true, where)](MarkedText& text) {
      strip(text, left, right);
    });
  } else {
    throw Error(
        ErrorKind::kUnsupported,
        "{}: normalizer \"{}\" is not supported (supported: NFC, NFD, NFKC, NFKD, Lowercase, "
        "Replace, Prepend, Strip, StripAccents, ByteLevel, Sequence)",
        where, type);
  }
}

void Normalizer::apply(MarkedText& text) const {
  for (const auto& step : steps_) step->run(text);
}

}  // namespace whit
