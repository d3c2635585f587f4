// Text to token ids and back, from a Hugging Face tokenizer.json with a BPE model.
//
// Ids are identical to those of Hugging Face tokenizers. A Tokenizer is immutable: any number of
// threads may use one. Everything in the file is checked when it is loaded; a request can at worst
// get an Error (kResource) for a text on which the file's regular expressions backtrack without
// bound.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace whit {

// A stretch of text. Untrusted text (a user's words) never becomes a special token, trusted text
// (what a chat template adds) does; neither disturbs how the text around it is cut.
struct TextSegment {
  std::string text;
  bool trusted = true;
};

class Tokenizer {
 public:
  // `json` is the content of tokenizer.json, `where` its path for errors. Throws kInvalidData,
  // kNotFound for a missing member, kUnsupported for model types, normalizers, … that are not
  // implemented.
  static Tokenizer from_json(std::string_view json, std::string_view where);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  struct EncodeOptions {
    bool add_special_tokens = false;  // what the file's post-processor adds around a text (BOS, …)
    bool parse_special = true;        // false: special tokens in the text stay plain text
  };
  // Invalid UTF-8 is replaced by U+FFFD first.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const;
  std::vector<int32_t> encode(std::string_view text) const { return encode(text, EncodeOptions()); }
  // The segments are one text.
  std::vector<int32_t> encode(std::span<const TextSegment> segments,
                              const EncodeOptions& options) const;

  // Ids that are not in the vocabulary add nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // The bytes that a token adds to a text, which need not be UTF-8 on their own; empty for unknown
  // ids.
  std::string token_bytes(int32_t id) const;
  // The token as the file spells it; empty for unknown ids.
  std::string_view token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  bool is_special(int32_t id) const;
  // Largest id + 1. A model's embedding table may be larger (padding), never smaller.
  int64_t vocab_size() const;

 private:
  friend class StreamDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

// Turns a stream of ids into a stream of text: every push returns what is certain by then, so that
// a character whose bytes are spread over tokens comes out whole. All pushes and the flush together
// are decode()'s text (for byte-fallback vocabularies: where the bytes are valid UTF-8). The
// tokenizer must outlive the decoder.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
      : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {}

  std::string push(int32_t id);
  // What is left, ill-formed bytes as U+FFFD; afterwards the decoder starts anew.
  std::string flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool first_ = true;
  size_t stripped_ = 0;      // leading characters taken away so far
  bool strip_done_ = false;  // something else has been seen
  std::string pending_;      // bytes that may begin a character
};

}  // namespace whit
