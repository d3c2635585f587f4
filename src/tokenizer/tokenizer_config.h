// What tokenizer_config.json says beside the vocabulary: the names of special tokens and the chat
// templates.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace whit {

struct TokenizerConfig {
  std::optional<std::string> bos_token, eos_token, unk_token, pad_token;
  bool add_bos_token = false;
  bool add_eos_token = false;
  // By name; a single template is called "default". Jinja source.
  std::map<std::string, std::string> chat_templates;

  // The template called `name`, or "tool_use" where there are tools and it exists, or "default";
  // null: none.
  const std::string* chat_template(bool has_tools, std::string_view name = "") const;

  // `json` is tokenizer_config.json's content, `jinja` that of chat_template.jinja beside it (it
  // wins over the member "chat_template"). Throws kInvalidData.
  static TokenizerConfig from_json(std::string_view json, std::string_view where,
                                   std::optional<std::string_view> jinja = std::nullopt);
};

}  // namespace whit
