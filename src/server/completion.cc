#include "server/completion.h"

#include <algorithm>
#include <ctime>

namespace whit {
namespace {

std::string dumped(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Characters of a UTF-8 text; a stray byte counts as one once it is part of a character.
int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i++]);
    const int rest = lead < 0x80 ? 0 : lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc2 ? 1 : -1;
    if (rest < 0 || lead > 0xf4) return false;
    for (int j = 0; j < rest; ++j, ++i)
      if (i >= text.size() || (static_cast<uint8_t>(text[i]) & 0xc0) != 0x80) return false;
  }
  return true;
}

std::string base64(std::span<const uint8_t> bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) group = group << 8 | (j < count ? bytes[i + j] : 0u);
    for (size_t j = 0; j < 4; ++j) out += j <= count ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

}  // namespace

Completion::Completion(ApiRequest request, std::string id, std::shared_ptr<HttpReply> reply,
                       const Tokenizer& tokenizer, std::function<void(RequestId)> cancel,
                       std::function<void()> done)
    : request_(std::move(request)),
      id_(std::move(id)),
      created_(std::time(nullptr)),
      reply_(std::move(reply)),
      tokenizer_(tokenizer),
      cancel_(std::move(cancel)),
      done_(std::move(done)),
      choices_(request_.requests.size() * request_.choices),
      left_(std::ssize(choices_)) {
  if (request_.kind == ApiKind::kEmbedding) embeddings_.resize(choices_.size());
  prompt_details_.resize(request_.requests.size());
}

Completion::~Completion() { done_(); }

std::shared_ptr<Completion::Part> Completion::part(int64_t index) {
  return std::make_shared<Part>(Part{shared_from_this(), index});
}

void Completion::submitted(RequestId id) {
  {
    std::lock_guard lock(mutex_);
    ids_.push_back(id);
    if (!cancelled_) return;
  }
  cancel_(id);
}

void Completion::cancel() {
  std::vector<RequestId> ids;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    ids = ids_;
  }
  for (const RequestId id : ids) cancel_(id);
}

void Completion::fail(const ApiError& error) {
  {
    std::lock_guard lock(mutex_);
    failed_ = true;
  }
  cancel();
  HttpResponse response{.status = error.status(), .body = dumped(error.to_json())};
  if (error.status() == 429) response.headers.emplace_back("Retry-After", "1");
  reply_->send(std::move(response));
}

Json Completion::envelope(const char* object) const {
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", request_.model},
          {"system_fingerprint", "whit-" WHIT_VERSION}};
}

Json Completion::usage() const {
  return {{"prompt_tokens", prompt_tokens_},
          {"completion_tokens", generated_tokens_},
          {"total_tokens", prompt_tokens_ + generated_tokens_},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens_}}}};
}

Json Completion::chat_logprobs(const std::vector<TokenDetail>& details) const {
  if (request_.top_logprobs < 0) return nullptr;
  Json content = Json::array();
  const auto entry = [&](int32_t token, float logprob) {
    const std::string bytes = tokenizer_.is_special(token) ? std::string(tokenizer_.token(token))
                                                           : tokenizer_.token_bytes(token);
    Json values = Json::array();
    for (const char byte : bytes) values.push_back(static_cast<uint8_t>(byte));
    return Json{{"token", bytes}, {"logprob", std::max(logprob, -9999.0f)}, {"bytes", values}};
  };
  for (const TokenDetail& detail : details) {
    Json one = entry(detail.token, detail.logprob);
    Json top = Json::array();
    for (const TokenLogprob& other : detail.top) top.push_back(entry(other.token, other.logprob));
    one["top_logprobs"] = std::move(top);
    content.push_back(std::move(one));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

Json Completion::completion_logprobs(ChoiceState& choice,
                                     const std::vector<TokenDetail>& details) const {
  if (request_.top_logprobs < 0) return nullptr;
  Json tokens = Json::array(), logprobs = Json::array(), top = Json::array(),
       offsets = Json::array();
  // Bytes that are no text on their own are spelled out, as OpenAI does: tokens stay distinct.
  const auto text_of = [&](int32_t token) {
    const std::string bytes = tokenizer_.is_special(token) ? std::string(tokenizer_.token(token))
                                                           : tokenizer_.token_bytes(token);
    if (is_utf8(bytes)) return bytes;
    std::string spelled = "bytes:";
    for (const char byte : bytes) spelled += fmt::format("\\x{:02x}", static_cast<uint8_t>(byte));
    return spelled;
  };
  for (const TokenDetail& detail : details) {
    const std::string text = text_of(detail.token);
    tokens.push_back(text);
    offsets.push_back(choice.offset);
    choice.offset += characters(text);
    // A prompt's first token has no probability; it is marked by one above 1.
    if (detail.logprob > 0.5f) {
      logprobs.push_back(nullptr);
      top.push_back(nullptr);
      continue;
    }
    logprobs.push_back(std::max(detail.logprob, -9999.0f));
    Json others = Json::object();
    for (const TokenLogprob& other : detail.top)
      others[text_of(other.token)] = std::max(other.logprob, -9999.0f);
    if (!others.contains(text)) others[text] = std::max(detail.logprob, -9999.0f);
    top.push_back(std::move(others));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(logprobs)},
          {"top_logprobs", std::move(top)},
          {"text_offset", std::move(offsets)}};
}

Json Completion::tool_calls(const std::vector<ToolCall>& calls, int64_t first,
                            bool with_index) const {
  Json list = Json::array();
  for (size_t i = 0; i < calls.size(); ++i) {
    const int64_t index = first + static_cast<int64_t>(i);
    Json call = Json::object();
    if (with_index) call["index"] = index;
    call["id"] = fmt::format("call_{}_{}", id_.substr(id_.find('-') + 1), index);
    call["type"] = "function";
    call["function"] = {{"name", calls[i].name}, {"arguments", calls[i].arguments}};
    list.push_back(std::move(call));
  }
  return list;
}

// The prompt is the beginning of the answer.
void Completion::begin_echo(ChoiceState& choice, int64_t prompt) {
  choice.text = request_.echoes[prompt];
  if (request_.top_logprobs < 0) return;
  choice.details.push_back({request_.requests[prompt].prompt[0], 1.0f, {}});
  const std::vector<TokenDetail>& details = prompt_details_[prompt];
  choice.details.insert(choice.details.end(), details.begin(), details.end());
}

void Completion::on_event(RequestEvent event, int64_t prompt) {
  const int64_t index = prompt * request_.choices + event.choice;
  ChoiceState& choice = choices_[index];
  std::string text = std::move(event.text);
  std::vector<ToolCall> calls;
  if (request_.no_output) {
    text.clear();
    event.details.clear();
    event.generated_tokens = 0;
    event.finish_reason = FinishReason::kLength;
  }
  if (request_.parse_tools) {
    ToolCallParser::Found found = choice.tools.push(text);
    if (event.finished) {
      ToolCallParser::Found rest = choice.tools.finish();
      found.text += rest.text;
      std::move(rest.calls.begin(), rest.calls.end(), std::back_inserter(found.calls));
    }
    text = std::move(found.text);
    calls = std::move(found.calls);
  }
  if (event.first && request_.echo) {
    // The first choice computed the prompt; the others share it.
    if (event.choice == 0) prompt_details_[prompt] = std::move(event.prompt_details);
    begin_echo(choice, prompt);
  }
  // In a conversation the token that ends an answer is no part of it.
  if (request_.kind == ApiKind::kChat && event.stopped_by_token && !event.details.empty())
    event.details.pop_back();
  choice.details.insert(choice.details.end(), event.details.begin(), event.details.end());
  choice.text += text;
  choice.calls.insert(choice.calls.end(), calls.begin(), calls.end());
  if (event.finished) {
    const bool cancelled = event.finish_reason == FinishReason::kCancelled;
    choice.finish_reason = cancelled               ? "abort"
                           : !choice.calls.empty() ? "tool_calls"
                                                   : std::string(name(event.finish_reason));
    choice.stop_reason = event.stop_reason;
    generated_tokens_ += event.generated_tokens;
    if (!event.error.empty()) error_ = event.error;
    if (!event.embedding.empty()) embeddings_[index] = event.embedding;
    if (event.last_choice) {
      prompt_tokens_ += event.prompt_tokens;
      cached_tokens_ += event.cached_tokens;
    }
    --left_;
  }
  {
    std::lock_guard lock(mutex_);
    if (failed_) return;
  }
  if (request_.stream) stream_event(choice, index, event, text, calls);
  if (left_ == 0) finish();
}

void Completion::stream_event(ChoiceState& choice, int64_t index, const RequestEvent& event,
                              const std::string& text, const std::vector<ToolCall>& calls) {
  if (!streaming_) {
    if (!event.error.empty()) return;  // told by finish(), with a status
    reply_->begin_stream("text/event-stream");
    streaming_ = true;
  }
  const bool chat = request_.kind == ApiKind::kChat;
  const std::string shown = chat || choice.begun ? text : choice.text;
  const bool silent = shown.empty() && calls.empty() && !event.finished && choice.details.empty();
  if (chat && !choice.begun) {
    Json body = envelope("chat.completion.chunk");
    body["choices"] = Json::array({{{"index", index},
                                    {"delta", {{"role", "assistant"}, {"content", ""}}},
                                    {"logprobs", nullptr},
                                    {"finish_reason", nullptr}}});
    send_event(body);
  } else if (silent) {
    return;
  }
  choice.begun = true;
  if (silent) return;
  const std::vector<TokenDetail> details = std::exchange(choice.details, {});
  Json one = {{"index", index}};
  if (chat) {
    Json delta = Json::object();
    if (!shown.empty() || !details.empty()) delta["content"] = shown;
    if (!calls.empty()) {
      delta["tool_calls"] = tool_calls(calls, choice.calls_sent, true);
      choice.calls_sent += std::ssize(calls);
    }
    one["delta"] = std::move(delta);
    one["logprobs"] = details.empty() ? Json() : chat_logprobs(details);
  } else {
    one["text"] = shown;
    one["logprobs"] = details.empty() ? Json() : completion_logprobs(choice, details);
  }
  one["finish_reason"] = event.finished ? Json(choice.finish_reason) : Json();
  if (event.finished)
    one["stop_reason"] = choice.stop_reason.empty() ? Json() : Json(choice.stop_reason);
  Json body = envelope(chat ? "chat.completion.chunk" : "text_completion");
  body["choices"] = Json::array({std::move(one)});
  if (request_.include_usage) body["usage"] = nullptr;
  send_event(body);
}

void Completion::send_event(const Json& body) { reply_->write("data: " + dumped(body) + "\n\n"); }

void Completion::send_json(const Json& body) { reply_->send({.body = dumped(body)}); }

void Completion::finish() {
  if (!error_.empty()) {
    const ApiError error(500, "internal_error", error_);
    if (!streaming_) {
      reply_->send({.status = 500, .body = dumped(error.to_json())});
      return;
    }
    send_event(error.to_json());
  }
  if (request_.stream) {
    if (request_.include_usage && error_.empty()) {
      Json body =
          envelope(request_.kind == ApiKind::kChat ? "chat.completion.chunk" : "text_completion");
      body["choices"] = Json::array();
      body["usage"] = usage();
      send_event(body);
    }
    reply_->write("data: [DONE]\n\n");
    reply_->end();
    return;
  }
  if (request_.kind == ApiKind::kEmbedding) {
    Json data = Json::array();
    for (size_t i = 0; i < embeddings_.size(); ++i) {
      Json value;
      if (request_.base64)
        value = base64({reinterpret_cast<const uint8_t*>(embeddings_[i].data()),
                        embeddings_[i].size() * sizeof(float)});
      else
        value = embeddings_[i];
      data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", std::move(value)}});
    }
    send_json({{"object", "list"},
               {"data", std::move(data)},
               {"model", request_.model},
               {"usage", {{"prompt_tokens", prompt_tokens_}, {"total_tokens", prompt_tokens_}}}});
    return;
  }
  const bool chat = request_.kind == ApiKind::kChat;
  Json list = Json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    ChoiceState& choice = choices_[i];
    Json one = {{"index", i}};
    if (chat) {
      Json message = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
      if (!choice.calls.empty()) {
        if (choice.text.find_first_not_of(" \t\r\n") == std::string::npos)
          message["content"] = nullptr;
        message["tool_calls"] = tool_calls(choice.calls, 0, false);
      }
      one["message"] = std::move(message);
      one["logprobs"] = chat_logprobs(choice.details);
    } else {
      one["text"] = choice.text;
      one["logprobs"] = completion_logprobs(choice, choice.details);
    }
    one["finish_reason"] = choice.finish_reason;
    one["stop_reason"] = choice.stop_reason.empty() ? Json() : Json(choice.stop_reason);
    list.push_back(std::move(one));
  }
  Json body = envelope(chat ? "chat.completion" : "text_completion");
  body["choices"] = std::move(list);
  body["usage"] = usage();
  send_json(body);
}

}  // namespace whit
