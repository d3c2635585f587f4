#include "tokenizer/pretokenizer.h"

#include <algorithm>
#include <memory>

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

// What becomes of the matches of a splitting pattern; names as in tokenizer.json.
enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

Behavior parse_behavior(const Json& json, std::string_view where, Behavior fallback) {
  const std::string name = json_get_or<std::string>(json, "behavior", "", where);
  if (name.empty()) return fallback;
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  throw Error(ErrorKind::kInvalidData, "{}: unknown split behavior \"{}\"", where, name);
}

struct Span {
  size_t begin, end;
  bool is_match;
};

// Joins spans according to `behavior`. A match joins its neighbour only if that neighbour is not a
// match.
void join_spans(std::vector<Span>& spans, Behavior behavior) {
  if (behavior == Behavior::kRemoved) {
    std::erase_if(spans, [](const Span& span) { return span.is_match; });
    return;
  }
  if (behavior == Behavior::kIsolated) return;
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(spans.begin(), spans.end());
  std::vector<Span> joined;
  bool previous_match = false;
  for (const Span& span : spans) {
    const bool join = behavior == Behavior::kContiguous ? span.is_match == previous_match
                                                        : span.is_match && !previous_match;
    if (join && !joined.empty()) {
      joined.back().begin = std::min(joined.back().begin, span.begin);
      joined.back().end = std::max(joined.back().end, span.end);
    } else {
      joined.push_back(span);
    }
    previous_match = span.is_match;
  }
  if (backwards) std::reverse(joined.begin(), joined.end());
  spans = std::move(joined);
}

// Cuts every piece that is still text. `find(text, spans)` appends spans that cover the text.
template <typename Find>
void split_pieces(Pieces& pieces, Behavior behavior, bool invert, Find find) {
  std::vector<Pieces::Piece> result;
  result.reserve(pieces.list.size());
  std::vector<Span> spans;
  for (const Pieces::Piece& piece : pieces.list) {
    if (piece.token >= 0) {
      result.push_back(piece);
      continue;
    }
    spans.clear();
    find(pieces.text(piece), spans);
    if (invert)
      for (Span& span : spans) span.is_match = !span.is_match;
    join_spans(spans, behavior);
    for (const Span& span : spans) {
      if (span.begin == span.end) continue;
      result.push_back({static_cast<uint32_t>(piece.begin + span.begin),
                        static_cast<uint32_t>(piece.begin + span.end), -1,
                        piece.at_start && span.begin == 0});
    }
  }
  pieces.list = std::move(result);
}

void split_by_regex(Pieces& pieces, const Regex& regex, Behavior behavior, bool invert) {
  Regex::Scratch scratch;
  std::vector<RegexMatch> matches;
  split_pieces(pieces, behavior, invert, [&](std::string_view text, std::vector<Span>& spans) {
    regex.find_all(text, scratch, matches);
    size_t previous = 0;
    for (const RegexMatch& match : matches) {
      if (match.begin > previous) spans.push_back({previous, match.begin, false});
      spans.push_back({match.begin, match.end, true});
      previous = match.end;
    }
    if (previous < text.size()) spans.push_back({previous, text.size(), false});
  });
}

// Each character for which `is_match` holds is a match of its own.
template <typename Predicate>
void split_by_character(Pieces& pieces, Predicate is_match, Behavior behavior) {
  split_pieces(pieces, behavior, false, [&](std::string_view text, std::vector<Span>& spans) {
    size_t previous = 0;
    for (size_t pos = 0; pos < text.size();) {
      const CodePoint c = code_point_at(text, pos);
      if (is_match(c.value)) {
        if (previous < pos) spans.push_back({previous, pos, false});
        spans.push_back({pos, pos + c.bytes, true});
        previous = pos + c.bytes;
      }
      pos += c.bytes;
    }
    if (previous < text.size()) spans.push_back({previous, text.size(), false});
  });
}

// Rewrites every piece that is still text: `append(piece, text, out)` appends what becomes of it.
template <typename Append>
void rewrite_pieces(Pieces& pieces, Append append) {
  std::string buffer;
  buffer.reserve(pieces.buffer.size() + pieces.buffer.size() / 4);
  for (Pieces::Piece& piece : pieces.list) {
    const std::string_view text = pieces.text(piece);
    const size_t begin = buffer.size();
    if (piece.token < 0) append(piece, text, buffer);
    if (buffer.size() > Pieces::kMaxBytes)
      throw Error(ErrorKind::kResource, "the text is too long to tokenize (limit {} bytes)",
                  Pieces::kMaxBytes);
    piece.begin = static_cast<uint32_t>(begin);
    piece.end = static_cast<uint32_t>(buffer.size());
  }
  pieces.buffer = std::move(buffer);
}

// The pattern of GPT-2's encoder, the default of ByteLevel.
const Regex& gpt2_regex() {
  static const Regex regex(
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
      "ByteLevel");
  return regex;
}

// \w and \s as Unicode Technical Standard 18, annex C defines them (Oniguruma's \w is narrower).
const Regex& word_regex() {
  static const Regex regex(
      "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}]+|"
      "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}\\s]+",
      "Whitespace");
  return regex;
}

struct Metaspace {
  enum class Prepend { kAlways, kFirst, kNever };
  std::string replacement;
  Prepend prepend = Prepend::kAlways;
  bool split = true;

  Metaspace(const Json& json, std::string_view where) {
    replacement = json_get_or<std::string>(json, "replacement", "\u2581", where);
    if (replacement.empty() || code_point_at(replacement, 0).bytes != replacement.size())
      throw Error(ErrorKind::kInvalidData, "{}: Metaspace's replacement must be one character",
                  where);
    const std::string scheme = json_get_or<std::string>(json, "prepend_scheme", "always", where);
    if (scheme == "always")
      prepend = Prepend::kAlways;
    else if (scheme == "first")
      prepend = Prepend::kFirst;
    else if (scheme == "never")
      prepend = Prepend::kNever;
    else
      throw Error(ErrorKind::kInvalidData, "{}: unknown prepend_scheme \"{}\"", where, scheme);
    if (!json_get_or<bool>(json, "add_prefix_space", true, where)) prepend = Prepend::kNever;
    split = json_get_or<bool>(json, "split", true, where);
  }

  void apply(Pieces& pieces) const {
    rewrite_pieces(
        pieces, [&](const Pieces::Piece& piece, std::string_view text, std::string& out) {
          const bool wanted =
              prepend == Prepend::kAlways || (prepend == Prepend::kFirst && piece.at_start);
          if (wanted && !text.starts_with(' ') && !text.starts_with(replacement))
            out += replacement;
          for (const char c : text) {
            if (c == ' ')
              out += replacement;
            else
              out += c;
          }
        });
    if (!split) return;
    const char32_t mark = code_point_at(replacement, 0).value;
    split_by_character(
        pieces, [mark](char32_t c) { return c == mark; }, Behavior::kMergedWithNext);
  }
};

}  // namespace

PreTokenizer::PreTokenizer(const Json& json, std::string_view where) {
  if (!json.is_null()) add(json, where);
}

void PreTokenizer::add(const Json& json, std::string_view where) {
  const std::string type = json_get<std::string>(json, "type", where);
  if (type == "Sequence") {
    const auto found = json.find("pretokenizers");
    if (found == json.end() || !found->is_array())
      throw Error(ErrorKind::kInvalidData, "{}: Sequence needs a list \"pretokenizers\"", where);
    for (const Json& entry : *found) add(entry, where);
  } else if (type == "Split") {
    steps_.push_back([regex = std::make_shared<Regex>(parse_pattern(json, where)),
                      behavior = parse_behavior(json, where, Behavior::kIsolated),
                      invert = json_get_or<bool>(json, "invert", false, where)](Pieces& pieces) {
      split_by_regex(pieces, *regex, behavior, invert);
    });
  } else if (type == "ByteLevel") {
    steps_.push_back([prefix = json_get_or<bool>(json, "add_prefix_space", true, where),
                      use_regex =
                          json_get_or<bool>(json, "use_regex", true, where)](Pieces& pieces) {
      if (prefix)
        rewrite_pieces(pieces, [](const Pieces::Piece&, std::string_view text, std::string& out) {
          if (!text.starts_with(' ')) out += ' ';
          out += text;
        });
      if (use_regex) split_by_regex(pieces, gpt2_regex(), Behavior::kIsolated, false);
      rewrite_pieces(pieces, [](const Pieces::Piece&, std::string_view text, std::string& out) {
        append_byte_level(text, out);
      });
    });
  } else if (type == "Digits") {
    const Behavior behavior = json_get_or<bool>(json, "individual_digits", false, where)
                                  ? Behavior::kIsolated
                                  : Behavior::kContiguous;
    steps_.push_back(
        [behavior](Pieces& pieces) { split_by_character(pieces, is_numeric, behavior); });
  } else if (type == "Punctuation") {
    const Behavior behavior = parse_behavior(json, where, Behavior::kIsolated);
    steps_.push_back(
        [behavior](Pieces& pieces) { split_by_character(pieces, is_punctuation, behavior); });
  } else if (type == "WhitespaceSplit") {
    steps_.push_back(
        [](Pieces& pieces) { split_by_character(pieces, is_whitespace, Behavior::kRemoved); });
  } else if (type == "BertPreTokenizer") {
    steps_.push_back([](Pieces& pieces) {
      split_by_character(pieces, is_whitespace, Behavior::kRemoved);
      split_by_character(pieces, is_punctuation, Behavior::kIsolated);
    });
  } else if (type == "CharDelimiterSplit") {
    const std::string delimiter = json_get<std::string>(json, "delimiter", where);
    if (delimiter.empty() || code_point_at(delimiter, 0).bytes != delimiter.size())
      throw Error(ErrorKind::kInvalidData, "{}: the delimiter must be one character", where);
    steps_.push_back([mark = code_point_at(delimiter, 0).value](Pieces& pieces) {
      split_by_character(
          pieces, [mark](char32_t c) { return c == mark; }, Behavior::kRemoved);
    });
  } else if (type == "Whitespace") {
    steps_.push_back(
        [](Pieces& pieces) { split_by_regex(pieces, word_regex(), Behavior::kRemoved, true); });
  } else if (type == "Metaspace") {
    steps_.push_back(
        [metaspace = Metaspace(json, where)](Pieces& pieces) { metaspace.apply(pieces); });
  } else {
    throw Error(
        ErrorKind::kUnsupported,
        "{}: pre-tokenizer \"{}\" is not supported (supported: Sequence, Split, Digits, "
        "ByteLevel, Metaspace, Whitespace, WhitespaceSplit, Punctuation, CharDelimiterSplit, "
        "BertPreTokenizer)",
        where, type);
  }
}

void PreTokenizer::apply(Pieces& pieces) const {
  for (const auto& step : steps_) step(pieces);
}

}  // namespace whit
