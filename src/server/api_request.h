// OpenAI's requests as the engine's: every field checked against its range, prompts tokenized,
// grammars compiled. All of it happens before anything is computed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "runtime/grammar/compile.h"
#include "runtime/request.h"
#include "server/fields.h"

namespace whit {

struct ApiLimits {
  int64_t max_context = 2048;
  int64_t max_prompts = 64;   // of one request
  int64_t max_choices = 128;  // n
  int64_t max_messages = 4096;
  int64_t max_tools = 128;
};

// What parsing needs to know of the server. Shared by its threads.
struct ApiContext {
  const Model& model;
  std::vector<std::string> names;  // under which the model is served; the first one is shown
  ApiLimits limits;
  std::shared_ptr<const TokenTrie> tokens;
  GrammarCache& grammars;
};

enum class ApiKind { kChat, kCompletion, kEmbedding };

struct ApiRequest {
  ApiKind kind = ApiKind::kCompletion;
  std::string model;                // as the client named it
  std::vector<Request> requests;    // one a prompt
  std::vector<std::string> echoes;  // with `echo`: the prompts' texts
  int64_t choices = 1;              // of each prompt
  bool stream = false, include_usage = false, echo = false;
  bool no_output = false;    // max_tokens 0: the prompt's log-probabilities alone are wanted
  int top_logprobs = -1;     // −1: no log-probabilities
  bool parse_tools = false;  // calls are taken out of the text
  bool base64 = false;       // of embeddings
};

// Throw ApiError.
ApiRequest parse_chat(const Json& body, const ApiContext& context);
ApiRequest parse_completion(const Json& body, const ApiContext& context);
ApiRequest parse_embedding(const Json& body, const ApiContext& context);

// The conversation and tools of a chat request (also of /tokenize) as token ids.
std::vector<int32_t> chat_ids(const Json& body, const ApiContext& context);
// "prompt" or "input": texts and lists of ids, one entry each.
struct ApiPrompt {
  std::string text;  // where it was a text
  bool is_text = false;
  std::vector<int32_t> ids;
};
std::vector<ApiPrompt> parse_prompts(const Json& body, const char* field, const ApiContext& context,
                                     bool add_special_tokens);

}  // namespace whit
