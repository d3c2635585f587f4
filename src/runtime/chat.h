// A conversation as the tokens that a model was trained to see: through its own chat template.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/model.h"
#include "tokenizer/chat_template.h"

namespace whit {

struct ConversationMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

bool has_chat_template(const Model& model);

// The ids of the conversation followed by the opening of the assistant's turn. Words of a message
// never become special tokens. Throws kUnsupported for a model without a template, and what the
// template itself refuses.
std::vector<int32_t> chat_prompt_ids(const Model& model,
                                     std::span<const ConversationMessage> messages);

// The same of a whole input: messages with tool calls, tools, variables. Its special tokens are
// filled in here.
std::vector<int32_t> chat_prompt_ids(const Model& model, ChatInput input,
                                     const ChatLimits& limits = {});

}  // namespace whit
