#include "tokenizer/tokenizer_config.h"

#include "base/json.h"

namespace whit {
namespace {

// A special token is a string or {"content": string, …}.
std::optional<std::string> special_token(const Json& json, std::string_view key,
                                         std::string_view where) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::nullopt;
  if (found->is_object()) return json_get<std::string>(*found, "content", where);
  return json_get<std::string>(json, key, where);
}

}  // namespace

const std::string* TokenizerConfig::chat_template(bool has_tools, std::string_view name) const {
  const auto find = [&](std::string_view key) -> const std::string* {
    const auto found = chat_templates.find(std::string(key));
    return found == chat_templates.end() ? nullptr : &found->second;
  };
  if (!name.empty()) return find(name);
  if (has_tools)
    if (const std::string* tool_use = find("tool_use")) return tool_use;
  return find("default");
}

TokenizerConfig TokenizerConfig::from_json(std::string_view json_text, std::string_view where,
                                           std::optional<std::string_view> jinja) {
  const Json json = parse_json(json_text, where);
  TokenizerConfig config;
  if (!json.is_object()) throw Error(ErrorKind::kInvalidData, "{}: expected an object", where);
  config.bos_token = special_token(json, "bos_token", where);
  config.eos_token = special_token(json, "eos_token", where);
  config.unk_token = special_token(json, "unk_token", where);
  config.pad_token = special_token(json, "pad_token", where);
  config.add_bos_token = json_get_or<bool>(json, "add_bos_token", false, where);
  config.add_eos_token = json_get_or<bool>(json, "add_eos_token", false, where);
  const auto found = json.find("chat_template");
  if (found != json.end() && found->is_string()) {
    config.chat_templates["default"] = found->get<std::string>();
  } else if (found != json.end() && found->is_array()) {
    for (const Json& entry : *found)
      config.chat_templates[json_get<std::string>(entry, "name", where)] =
          json_get<std::string>(entry, "template", where);
  } else if (found != json.end() && !found->is_null()) {
    throw Error(ErrorKind::kInvalidData,
                "{}: \"chat_template\" must be a string or a list of {{name, template}}", where);
  }
  if (jinja) config.chat_templates["default"] = *jinja;
  return config;
}

}  // namespace whit
