// Chat templates: a conversation to the text that a model was trained on.
//
// A safe subset of Jinja 3.1 that renders templates as transformers does (its sandboxed environment
// with trim_blocks, lstrip_blocks and loop controls). Rendering is limited in steps, depth and
// memory, and can reach nothing but its input.
//
// Every string remembers whether it came from the template or from the input, through whatever the
// template does with it. render_segments() returns that, and Tokenizer::encode() recognizes special
// tokens in trusted segments only, so that a message cannot forge a turn. Trusted are the
// template's own text, bos_token and eos_token and the like, and the role of a message where it is
// a plain word ('<|' + role + '|>' is a token in some templates); everything else of the input is
// not.
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace whit {

struct ChatInput {
  Json messages = Json::array();    // [{"role", "content", …}, …]
  Json tools;                       // null: none
  Json documents;                   // null: none
  Json variables = Json::object();  // more variables: enable_thinking, …
  bool add_generation_prompt = false;
  std::map<std::string, std::string> special_tokens;  // "bos_token" → its text, …
  std::optional<std::time_t> now;  // for strftime_now; the current time if not set
};

struct ChatLimits {
  int64_t steps = 20'000'000;
  int64_t value_bytes = int64_t{1} << 28;
  int64_t output_bytes = int64_t{1} << 26;
};

class ChatTemplate {
 public:
  // Throws kInvalidData with the line of a syntax error, kUnsupported, kResource.
  static ChatTemplate parse(std::string_view source, std::string_view where);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // Throws kInvalidArgument where the template calls raise_exception, kInvalidData for its own
  // mistakes, kUnsupported, kResource. Safe to call from several threads.
  std::string render(const ChatInput& input, const ChatLimits& limits = {}) const;
  std::vector<TextSegment> render_segments(const ChatInput& input,
                                           const ChatLimits& limits = {}) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<const Impl> impl);
  std::unique_ptr<const Impl> impl_;
};

}  // namespace whit
