// One client's request on its way back: from the engine's events to OpenAI's JSON, whole or as a
// stream of server-sent events.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/engine_loop.h"
#include "server/api_request.h"
#include "server/http_server.h"
#include "server/tool_parser.h"

namespace whit {

class Completion : public std::enable_shared_from_this<Completion> {
 public:
  // `id` is unique; `cancel` ends an engine request.
  Completion(ApiRequest request, std::string id, std::shared_ptr<HttpReply> reply,
             const Tokenizer& tokenizer, std::function<void(RequestId)> cancel,
             std::function<void()> done);
  ~Completion();

  // The context of the engine's request for prompt `index`.
  struct Part {
    std::shared_ptr<Completion> completion;
    int64_t index;
  };
  std::shared_ptr<Part> part(int64_t index);
  // A request of this completion was submitted.
  void submitted(RequestId id);
  // It cannot be served: an error is the answer; what was submitted is cancelled.
  void fail(const ApiError& error);
  // The client has left, or the server gives up.
  void cancel();

  // On the input thread alone, in the order of the engine.
  void on_event(RequestEvent event, int64_t prompt);

 private:
  struct ChoiceState {
    std::string text;
    std::string finish_reason;
    std::string stop_reason;
    std::vector<TokenDetail> details;  // not streamed yet, or all
    std::vector<ToolCall> calls;
    int64_t calls_sent = 0;
    ToolCallParser tools;
    int64_t offset = 0;  // characters so far, for completions' text_offset
    bool begun = false;
  };

  void stream_event(ChoiceState& choice, int64_t index, const RequestEvent& event,
                    const std::string& text, const std::vector<ToolCall>& calls);
  void finish();
  void send_json(const Json& body);
  void send_event(const Json& body);
  Json usage() const;
  Json envelope(const char* object) const;
  Json chat_logprobs(const std::vector<TokenDetail>& details) const;
  Json completion_logprobs(ChoiceState& choice, const std::vector<TokenDetail>& details) const;
  Json tool_calls(const std::vector<ToolCall>& calls, int64_t first, bool with_index) const;
  void begin_echo(ChoiceState& choice, int64_t prompt);

  ApiRequest request_;
  std::string id_;
  int64_t created_;
  std::shared_ptr<HttpReply> reply_;
  const Tokenizer& tokenizer_;
  std::function<void(RequestId)> cancel_;
  std::function<void()> done_;
  std::vector<ChoiceState> choices_;
  std::vector<std::vector<float>> embeddings_;
  std::vector<std::vector<TokenDetail>> prompt_details_;  // with `echo`, of each prompt
  int64_t left_;
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, generated_tokens_ = 0;
  std::string error_;
  bool streaming_ = false;  // the stream's head is sent

  std::mutex mutex_;
  std::vector<RequestId> ids_;
  bool cancelled_ = false, failed_ = false;
};

}  // namespace whit
