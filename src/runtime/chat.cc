#include "runtime/chat.h"

namespace whit {

bool has_chat_template(const Model& model) {
  return model.tokenizer_config().chat_template(/*has_tools=*/false) != nullptr;
}

std::vector<int32_t> chat_prompt_ids(const Model& model,
                                     std::span<const ConversationMessage> messages) {
  ChatInput input;
  input.add_generation_prompt = true;
  for (const ConversationMessage& message : messages)
    input.messages.push_back({{"role", message.role}, {"content", message.content}});
  return chat_prompt_ids(model, std::move(input));
}

std::vector<int32_t> chat_prompt_ids(const Model& model, ChatInput input,
                                     const ChatLimits& limits) {
  const TokenizerConfig& config = model.tokenizer_config();
  const std::string* source = config.chat_template(/*has_tools=*/!input.tools.is_null());
  if (source == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "{} has no chat template (tokenizer_config.json has no \"chat_template\"): it is "
                "not a chat model; give a "
                "plain prompt, or use its instruction-tuned version",
                model.description());
  const auto add_special = [&](const char* name, const std::optional<std::string>& token) {
    if (token) input.special_tokens[name] = *token;
  };
  add_special("bos_token", config.bos_token);
  add_special("eos_token", config.eos_token);
  add_special("unk_token", config.unk_token);
  add_special("pad_token", config.pad_token);
  const ChatTemplate chat_template =
      ChatTemplate::parse(*source, model.description() + " chat template");
  // The template writes beginning-of-sequence tokens itself.
  return model.tokenizer().encode(chat_template.render_segments(input, limits),
                                  {.add_special_tokens = false});
}

}  // namespace whit
