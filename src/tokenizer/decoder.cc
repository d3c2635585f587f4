#include "tokenizer/decoder.h"

#include <memory>
#include <optional>

#include "tokenizer/byte_level.h"
#include "tokenizer/pattern.h"
#include "tokenizer/unicode.h"

namespace whit {
namespace {

// The byte of a token that is spelled <0xXX>.
std::optional<char> byte_fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

std::string replace_matches(const Regex& pattern, std::string_view text, std::string_view content) {
  Regex::Scratch scratch;
  std::vector<RegexMatch> matches;
  if (text.empty()) return {};
  pattern.find_all(text, scratch, matches);
  std::string out;
  size_t pos = 0;
  for (const RegexMatch& match : matches) {
    out.append(text, pos, match.begin - pos);
    out += content;
    pos = match.end;
  }
  out.append(text, pos, text.size() - pos);
  return out;
}

// Runs of byte tokens become their text if it is valid, one U+FFFD per token if not.
void decode_byte_fallback(std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string run;
  const auto flush = [&] {
    if (run.empty()) return;
    if (valid_utf8_prefix(run) == run.size())
      out.push_back(run);
    else
      out.insert(out.end(), run.size(), "\uFFFD");
    run.clear();
  };
  for (std::string& token : tokens) {
    if (const auto byte = byte_fallback_byte(token)) {
      run += *byte;
      continue;
    }
    flush();
    out.push_back(std::move(token));
  }
  flush();
  tokens = std::move(out);
}

std::string strip_ends(std::string_view token, std::string_view character, size_t start,
                       size_t stop) {
  for (; start > 0 && token.starts_with(character); --start) token.remove_prefix(character.size());
  for (; stop > 0 && token.ends_with(character); --stop) token.remove_suffix(character.size());
  return std::string(token);
}

std::string one_character(const Json& json, std::string_view key, std::string_view fallback,
                          std::string_view where) {
  const std::string text = json_get_or<std::string>(json, key, std::string(fallback), where);
  if (text.empty() || code_point_at(text, 0).bytes != text.size())
    throw Error(ErrorKind::kInvalidData, "{}: decoder: \"{}\" must be one character", where, key);
  return text;
}

size_t count_of(const Json& json, std::string_view key, std::string_view where) {
  const int64_t count = json_get_or<int64_t>(json, key, 0, where);
  if (count < 0 || count > 1000)
    throw Error(ErrorKind::kInvalidData, "{}: decoder Strip: \"{}\" is {}", where, key, count);
  return static_cast<size_t>(count);
}

}  // namespace

Decoder::Decoder(const Json& json, std::string_view where) {
  if (!json.is_null()) add(json, where);
}

void Decoder::add(const Json& json, std::string_view where) {
  const std::string type = json_get<std::string>(json, "type", where);
  if (type == "Sequence") {
    const auto found = json.find("decoders");
    if (found == json.end() || !found->is_array())
      throw Error(ErrorKind::kInvalidData, "{}: Sequence needs a list \"decoders\"", where);
    for (const Json& entry : *found) add(entry, where);
  } else if (type == "ByteLevel") {
    steps_.push_back({[](std::vector<std::string>& tokens) {
                        std::string bytes;
                        for (const std::string& token : tokens) bytes += byte_level_bytes(token);
                        tokens.assign(1, lossy_utf8(bytes));
                      },
                      [](std::string& token, bool) {
                        token = byte_level_bytes(token);
                        return true;
                      }});
    fused_ = true;
  } else if (type == "Replace") {
    auto pattern = std::make_shared<Regex>(parse_pattern(json, where));
    const std::string content = json_get<std::string>(json, "content", where);
    steps_.push_back({[pattern, content](std::vector<std::string>& tokens) {
                        for (std::string& token : tokens)
                          token = replace_matches(*pattern, token, content);
                      },
                      [pattern, content](std::string& token, bool) {
                        token = replace_matches(*pattern, token, content);
                        return false;
                      }});
  } else if (type == "ByteFallback") {
    steps_.push_back({decode_byte_fallback, [](std::string& token, bool) {
                        const auto byte = byte_fallback_byte(token);
                        if (byte) token.assign(1, *byte);
                        return byte.has_value();
                      }});
  } else if (type == "Fuse") {
    steps_.push_back({[](std::vector<std::string>& tokens) {
                        std::string text;
                        for (const std::string& token : tokens) text += token;
                        tokens.assign(1, std::move(text));
                      },
                      [](std::string&, bool) { return false; }});
    fused_ = true;
  } else if (type == "Strip") {
    const std::string character = one_character(json, "content", " ", where);
    const size_t start = count_of(json, "start", where), stop = count_of(json, "stop", where);
    const bool per_token = !fused_;
    if (fused_ && start > 0) leading_strip_ = {character, start};
    steps_.push_back({[=](std::vector<std::string>& tokens) {
                        for (std::string& token : tokens)
                          token = strip_ends(token, character, start, stop);
                      },
                      [=](std::string& token, bool) {
                        if (per_token) token = strip_ends(token, character, start, stop);
                        return false;
                      }});
  } else if (type == "Metaspace") {
    const std::string replacement = one_character(json, "replacement", "\u2581", where);
    const bool drop_first =
        json_get_or<std::string>(json, "prepend_scheme", "always", where) != "never" &&
        json_get_or<bool>(json, "add_prefix_space", true, where);
    const auto pattern = std::make_shared<Regex>(Regex::literal(replacement, where));
    const auto decode_one = [pattern, drop_first](const std::string& token, bool first) {
      return replace_matches(*pattern, token, first && drop_first ? "" : " ");
    };
    steps_.push_back({[decode_one](std::vector<std::string>& tokens) {
                        for (size_t i = 0; i < tokens.size(); ++i)
                          tokens[i] = decode_one(tokens[i], i == 0);
                      },
                      [decode_one](std::string& token, bool first) {
                        token = decode_one(token, first);
                        return false;
                      }});
  } else {
    throw Error(
        ErrorKind::kUnsupported,
        "{}: decoder \"{}\" is not supported (supported: ByteLevel, Replace, ByteFallback, Fuse, "
        "Strip, Metaspace, Sequence)",
        where, type);
  }
}

std::string Decoder::decode(std::vector<std::string> tokens) const {
  for (const Step& step : steps_) step.decode(tokens);
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += separator();
    text += tokens[i];
  }
  return text;
}

std::string Decoder::token_bytes(std::string_view token, bool first) const {
  std::string bytes(token);
  for (const Step& step : steps_)
    if (step.token_bytes(bytes, first)) break;
  return bytes;
}

}  // namespace whit
