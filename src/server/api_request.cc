#include "server/api_request.h"

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"
#include "runtime/chat.h"
#include "runtime/grammar/token_trie.h"

namespace whit {
namespace {

constexpr size_t kMaxStops = 16, kMaxStopBytes = 256;
constexpr size_t kMaxBiases = 1024;
constexpr int64_t kMaxInteger = INT32_MAX;
constexpr size_t kMaxGrammarBytes = 256 << 10;
// A chat template of the model's runs in the request's time.
constexpr ChatLimits kChatLimits{
    .steps = 5'000'000, .value_bytes = 64 << 20, .output_bytes = 32 << 20};

void check_model(const Fields& fields, const ApiContext& context, ApiRequest& request) {
  const std::optional<std::string> name = fields.string("model", 1024);
  request.model = name.value_or(context.names[0]);
  if (std::find(context.names.begin(), context.names.end(), request.model) == context.names.end())
    throw ApiError(404, "not_found_error",
                   fmt::format("the model '{}' does not exist; '{}' is served", request.model,
                               context.names[0]),
                   "model", "model_not_found");
}

void parse_stops(const Fields& fields, Request& request) {
  const Json* stop = fields.find("stop");
  if (stop == nullptr) return;
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  const bool valid =
      list.size() <= kMaxStops && std::all_of(list.begin(), list.end(), [](const Json& each) {
        return each.is_string() && !each.get_ref<const std::string&>().empty() &&
               each.get_ref<const std::string&>().size() <= kMaxStopBytes;
      });
  if (!valid)
    throw invalid_field("stop", fmt::format("'stop' must be a text, or a list of at most {} texts, "
                                            "each of 1 to {} bytes, not {}",
                                            kMaxStops, kMaxStopBytes, shown(*stop)));
  for (const Json& each : list) request.options.stop.push_back(each.get<std::string>());
}

void parse_logit_bias(const Fields& fields, int64_t vocab, SamplerOptions& sampling) {
  const Json* biases = fields.find("logit_bias");
  if (biases == nullptr) return;
  const auto refuse = [&](const std::string& what) {
    throw invalid_field("logit_bias",
                        fmt::format("'logit_bias' must map at most {} token ids below "
                                    "{} to numbers from -100 to 100; {}",
                                    kMaxBiases, vocab, what));
  };
  if (!biases->is_object() || biases->size() > kMaxBiases) refuse("it is " + shown(*biases));
  for (const auto& [key, value] : biases->items()) {
    const bool digits =
        !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stol(key) >= vocab) refuse("'" + key.substr(0, 40) + "' is no token id");
    const double bias = value.is_number() ? value.get<double>() : NAN;
    if (!(bias >= -100 && bias <= 100)) refuse("a bias is " + shown(value));
    sampling.logit_bias[static_cast<int32_t>(std::stol(key))] = static_cast<float>(bias);
  }
}

void parse_stop_tokens(const Fields& fields, int64_t vocab, Request& request) {
  const Json* ids = fields.find("stop_token_ids");
  if (ids == nullptr) return;
  if (ids->is_array() && ids->size() <= 64) {
    for (const Json& id : *ids)
      if (const auto number = whole_number(id, 0, vocab - 1))
        request.stop_token_ids.push_back(static_cast<int32_t>(*number));
    if (request.stop_token_ids.size() == ids->size()) return;
  }
  throw invalid_field("stop_token_ids",
                      fmt::format("'stop_token_ids' must be a list of at most 64 token ids below "
                                  "{}, not {}",
                                  vocab, shown(*ids)));
}

// What requests of both kinds have in common.
void parse_sampling(const Fields& fields, const ApiContext& context, ApiRequest& api,
                    Request& request) {
  check_model(fields, context, api);
  SamplerOptions& sampling = request.options.sampling;
  const int64_t vocab = context.model.config().vocab_size;
  const auto set = [&](auto& target, const char* name, double least, double most) {
    if (const auto value = fields.number(name, least, most))
      target = static_cast<std::decay_t<decltype(target)>>(*value);
  };
  set(sampling.temperature, "temperature", 0, 2);
  set(sampling.top_p, "top_p", 1e-6, 1);
  set(sampling.min_p, "min_p", 0, 1);
  set(sampling.presence_penalty, "presence_penalty", -2, 2);
  set(sampling.frequency_penalty, "frequency_penalty", -2, 2);
  set(sampling.repetition_penalty, "repetition_penalty", 1e-2, 100);
  sampling.top_k = fields.integer("top_k", -1, kMaxInteger).value_or(0);
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<uint64_t>(*seed)
                       : (uint64_t{std::random_device()()} << 32 | std::random_device()());
  parse_logit_bias(fields, vocab, sampling);
  parse_stops(fields, request);
  parse_stop_tokens(fields, vocab, request);

  api.choices = fields.integer("n", 1, context.limits.max_choices).value_or(1);
  request.choices = api.choices;
  if (const auto best_of = fields.integer("best_of", 1, kMaxInteger);
      best_of && *best_of != api.choices)
    throw invalid_field("best_of",
                        "'best_of' other than 'n' is not supported: all answers are given");
  request.options.ignore_eos = fields.boolean("ignore_eos", false);
  request.skip_special_tokens = fields.boolean("skip_special_tokens", true);
  request.keep_stop_text = fields.boolean("include_stop_str_in_output", false);
  request.priority = fields.integer("priority", -100, 100).value_or(0);
  request.tenant = fields.string("user", 256).value_or("");
  request.cache_salt = fields.string("cache_salt", 256).value_or("");
  fields.refuse("min_tokens", 0, "use 'ignore_eos' or 'logit_bias'");
  fields.refuse("use_beam_search", false, "answers are sampled");
  fields.refuse("logits_processors", Json::array(), "use 'logit_bias'");
  fields.refuse("length_penalty", 1.0, "it belongs to beam search");
  fields.refuse("bad_words", Json::array(), "use 'logit_bias'");
  fields.refuse("allowed_token_ids", Json::array(), "use 'structured_outputs'");

  api.stream = fields.boolean("stream", false);
  if (const Json* options = fields.find("stream_options")) {
    if (!options->is_object() || !api.stream)
      throw invalid_field("stream_options",
                          "'stream_options' must be an object, and needs 'stream' to be true");
    const Fields of_stream(*options, "stream_options.");
    api.include_usage = of_stream.boolean("include_usage", false);
  }
}

void check_prompt_length(int64_t tokens, const char* field, const ApiContext& context) {
  if (tokens == 0) throw invalid_field(field, fmt::format("'{}' has no tokens", field));
  if (tokens >= context.limits.max_context)
    throw ApiError(400, "invalid_request_error",
                   fmt::format("'{}' has {} tokens, but the model's context is {} tokens, answer "
                               "included; shorten it",
                               field, tokens, context.limits.max_context),
                   field, "context_length_exceeded");
}

std::vector<std::string> string_list(const Json& value, const std::string& field, size_t most) {
  std::vector<std::string> texts;
  if (value.is_array() && !value.empty() && value.size() <= most)
    for (const Json& each : value)
      if (each.is_string() && each.get_ref<const std::string&>().size() <= 4096)
        texts.push_back(each.get<std::string>());
  if (texts.empty() || texts.size() != value.size())
    throw invalid_field(field, fmt::format("'{}' must be a list of 1 to {} texts, not {}", field,
                                           most, shown(value)));
  return texts;
}

// Runs `compile`; what a grammar cannot be is the request's mistake.
std::shared_ptr<const Grammar> compiled(const ApiContext& context, const std::string& field,
                                        const std::string& source,
                                        const GrammarCache::Compile& compile) {
  if (source.size() > kMaxGrammarBytes)
    throw invalid_field(field,
                        fmt::format("'{}' is larger than {} bytes", field, kMaxGrammarBytes));
  try {
    return context.grammars.get(source, compile);
  } catch (const Error& error) {
    throw invalid_field(field, fmt::format("'{}': {}", field, error.what()));
  }
}

// The one thing that the answer must look like, from any of the fields that can say so.
std::shared_ptr<const Grammar> parse_structure(const Fields& fields, const ApiContext& context) {
  std::vector<std::pair<std::string, std::shared_ptr<const Grammar>>> found;
  const auto add_schema = [&](const std::string& field, const Json& schema) {
    if (!schema.is_object() && !schema.is_boolean())
      throw invalid_field(field,
                          fmt::format("'{}' must be a JSON schema, not {}", field, shown(schema)));
    const std::string source = "schema:" + schema.dump();
    found.emplace_back(field, compiled(context, field, source, [&] {
                         return compile_json_schema(schema, context.tokens);
                       }));
  };
  const auto add_object = [&](const std::string& field) {
    found.emplace_back(field, compiled(context, field, "object:", [&] {
                         return compile_json_schema(Json(), context.tokens);
                       }));
  };
  const auto add_parts = [&](const Fields& part, const std::string& prefix) {
    const auto named = [&](const char* name) { return part.path(prefix + name); };
    if (const Json* schema = part.find(prefix + "json")) {
      Json value = *schema;
      if (value.is_string()) value = parse_inner(value.get<std::string>());
      if (value.is_discarded())
        throw invalid_field(named("json"), "the schema is not valid JSON, or nested too deeply");
      add_schema(named("json"), value);
    }
    if (const auto pattern = part.string(prefix + "regex", kMaxGrammarBytes))
      found.emplace_back(named("regex"),
                         compiled(context, named("regex"), "regex:" + *pattern,
                                  [&] { return compile_regex(*pattern, context.tokens); }));
    if (const auto text = part.string(prefix + "grammar", kMaxGrammarBytes))
      found.emplace_back(named("grammar"),
                         compiled(context, named("grammar"), "ebnf:" + *text,
                                  [&] { return compile_ebnf(*text, context.tokens); }));
    if (const Json* list = part.find(prefix + "choice")) {
      const auto texts = string_list(*list, named("choice"), 1024);
      found.emplace_back(named("choice"),
                         compiled(context, named("choice"), "choice:" + list->dump(),
                                  [&] { return compile_choice(texts, context.tokens); }));
    }
  };
  add_parts(fields, "guided_");
  // As llama.cpp's server calls them; what asks for a form is never passed over.
  if (const auto text = fields.string("grammar", kMaxGrammarBytes); text && !text->empty())
    found.emplace_back("grammar", compiled(context, "grammar", "ebnf:" + *text,
                                           [&] { return compile_ebnf(*text, context.tokens); }));
  if (const Json* schema = fields.find("json_schema")) add_schema("json_schema", *schema);
  if (const Json* parts = fields.find("structured_outputs")) {
    if (!parts->is_object())
      throw invalid_field("structured_outputs", "'structured_outputs' must be an object");
    const Fields part(*parts, "structured_outputs.");
    add_parts(part, "");
    if (part.boolean("json_object", false)) add_object("structured_outputs.json_object");
    part.refuse("structural_tag", Json(), "use 'json', 'regex', 'choice' or 'grammar'");
    if (found.empty())
      throw invalid_field("structured_outputs",
                          "'structured_outputs' needs one of 'json', 'regex', 'choice', 'grammar' "
                          "and 'json_object'");
  }
  if (const Json* format = fields.find("response_format")) {
    const auto type =
        format->is_object() ? Fields(*format, "response_format.").string("type", 64) : std::nullopt;
    if (const Json* any = type == "json_object" ? Fields(*format).find("schema") : nullptr) {
      add_schema("response_format", *any);  // as llama.cpp's server takes it
    } else if (type == "json_object") {
      add_object("response_format");
    } else if (type == "json_schema") {
      const Json* named = Fields(*format).find("json_schema");
      const Json* schema =
          named != nullptr && named->is_object() ? Fields(*named).find("schema") : nullptr;
      if (schema == nullptr)
        throw invalid_field("response_format",
                            "'response_format.json_schema.schema' must be a JSON schema");
      add_schema("response_format", *schema);
    } else if (type != "text") {
      throw invalid_field("response_format",
                          "'response_format' must be an object whose 'type' is 'text', "
                          "'json_object' or 'json_schema'");
    }
  }
  if (found.size() > 1)
    throw invalid_field(found[1].first, fmt::format("'{}' and '{}' contradict each other; give one",
                                                    found[0].first, found[1].first));
  return found.empty() ? nullptr : found[0].second;
}

// A message's content: a text, or parts of type "text".
Json content_of(const Json& message, const std::string& where) {
  const auto found = message.find("content");
  if (found == message.end() || found->is_null()) return Json();
  if (found->is_string()) return *found;
  std::string text;
  if (found->is_array() && found->size() <= 1024) {
    bool valid = true;
    for (const Json& part : *found) {
      const bool is_text = part.is_object() && part.value("type", Json()) == "text" &&
                           part.contains("text") && part["text"].is_string();
      valid = valid && is_text;
      if (is_text) text += part["text"].get<std::string>();
    }
    if (valid) return text;
  }
  throw invalid_field(where, fmt::format("'{}.content' must be a text or a list of parts of type "
                                         "'text'; other kinds of content are not supported",
                                         where));
}

Json parse_messages(const Fields& fields, const ApiContext& context) {
  const Json* list = fields.find("messages");
  if (list == nullptr || !list->is_array() || list->empty() ||
      std::ssize(*list) > context.limits.max_messages)
    throw invalid_field("messages", fmt::format("'messages' must be a list of 1 to {} messages",
                                                context.limits.max_messages));
  static const std::set<std::string> kRoles = {"system", "developer", "user", "assistant", "tool"};
  Json messages = Json::array();
  for (size_t i = 0; i < list->size(); ++i) {
    const Json& message = (*list)[i];
    const std::string where = fmt::format("messages[{}]", i);
    const std::string role =
        message.is_object() && message.contains("role") && message["role"].is_string()
            ? message["role"].get<std::string>()
            : "";
    if (!kRoles.contains(role))
      throw invalid_field(where, fmt::format("'{}.role' must be 'system', 'developer', 'user', "
                                             "'assistant' or 'tool'",
                                             where));
    Json out = {{"role", role == "developer" ? "system" : role}};
    const Json content = content_of(message, where);
    const bool calls = message.contains("tool_calls") && !message["tool_calls"].is_null();
    if (content.is_null() && !(role == "assistant" && calls))
      throw invalid_field(where, fmt::format("'{}.content' is missing", where));
    out["content"] = content.is_null() ? Json("") : content;
    if (const auto name = Fields(message, where + ".").string("name", 256)) out["name"] = *name;
    if (calls) {
      if (!message["tool_calls"].is_array() || message["tool_calls"].size() > 128)
        throw invalid_field(where, fmt::format("'{}.tool_calls' must be a list", where));
      Json tool_calls = Json::array();
      for (const Json& call : message["tool_calls"]) {
        if (!call.is_object() || !call.contains("function") || !call["function"].is_object() ||
            !call["function"].value("name", Json()).is_string())
          throw invalid_field(where,
                              fmt::format("'{}.tool_calls' must be calls of functions", where));
        Json one = call;
        // Templates write the arguments as JSON: they want the value, not its text.
        Json& function = one["function"];
        if (function.contains("arguments") && function["arguments"].is_string()) {
          Json value = parse_inner(function["arguments"].get<std::string>());
          if (!value.is_discarded()) function["arguments"] = std::move(value);
        }
        tool_calls.push_back(std::move(one));
      }
      out["tool_calls"] = std::move(tool_calls);
    }
    if (const auto id = Fields(message, where + ".").string("tool_call_id", 256))
      out["tool_call_id"] = *id;
    messages.push_back(std::move(out));
  }
  return messages;
}

// Name and schema of the parameters of each tool; `tools` is left null where there are none.
std::vector<std::pair<std::string, Json>> parse_tools(const Fields& fields,
                                                      const ApiContext& context, Json& tools) {
  std::vector<std::pair<std::string, Json>> result;
  const Json* list = fields.find("tools");
  if (list == nullptr || (list->is_array() && list->empty())) return result;
  const auto refuse = [&] {
    throw invalid_field("tools",
                        fmt::format("'tools' must be a list of at most {} objects {{\"type\": "
                                    "\"function\", \"function\": {{\"name\", \"description\", "
                                    "\"parameters\"}}}}",
                                    context.limits.max_tools));
  };
  if (!list->is_array() || std::ssize(*list) > context.limits.max_tools) refuse();
  for (const Json& tool : *list) {
    const bool valid = tool.is_object() && tool.value("type", Json("function")) == "function" &&
                       tool.contains("function") && tool["function"].is_object() &&
                       tool["function"].value("name", Json()).is_string();
    if (!valid) refuse();
    const Json& function = tool["function"];
    const auto name = function["name"].get<std::string>();
    if (name.empty() || name.size() > 256) refuse();
    const Json parameters = function.value("parameters", Json());
    if (!parameters.is_null() && !parameters.is_object()) refuse();
    result.emplace_back(name, parameters);
  }
  tools = *list;
  return result;
}

struct ToolChoice {
  enum class Mode { kNone, kAuto, kForced } mode = Mode::kAuto;
  std::string name;  // of the one function that is to be called
};

ToolChoice parse_tool_choice(const Fields& fields,
                             const std::vector<std::pair<std::string, Json>>& tools) {
  ToolChoice choice;
  if (tools.empty()) choice.mode = ToolChoice::Mode::kNone;
  const Json* value = fields.find("tool_choice");
  if (value == nullptr) return choice;
  if (*value == "none") {
    choice.mode = ToolChoice::Mode::kNone;
    return choice;
  }
  if (!tools.empty() && *value == "auto") return choice;
  if (!tools.empty() && *value == "required") {
    choice.mode = ToolChoice::Mode::kForced;
    return choice;
  }
  if (value->is_object() && value->contains("function") && (*value)["function"].is_object()) {
    const Json name = (*value)["function"].value("name", Json());
    for (const auto& [known, parameters] : tools)
      if (name == known) {
        choice.mode = ToolChoice::Mode::kForced;
        choice.name = known;
        return choice;
      }
  }
  throw invalid_field("tool_choice",
                      "'tool_choice' must be 'none', 'auto', 'required' or one of the functions in "
                      "'tools'");
}

std::vector<int32_t> render(const Fields& fields, const Json& messages, const Json& tools,
                            const ApiContext& context) {
  ChatInput input;
  input.messages = messages;
  input.tools = tools;
  input.add_generation_prompt = fields.boolean("add_generation_prompt", true);
  if (const Json* variables = fields.find("chat_template_kwargs")) {
    if (!variables->is_object() || variables->size() > 64)
      throw invalid_field("chat_template_kwargs", "'chat_template_kwargs' must be an object");
    input.variables = *variables;
  }
  fields.refuse("chat_template", Json(), "the model's own is used");
  fields.refuse("continue_final_message", false, "use /v1/completions");
  try {
    return chat_prompt_ids(context.model, std::move(input), kChatLimits);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::kUnsupported)
      throw ApiError(400, "invalid_request_error", error.what(), "messages", "no_chat_template");
    throw invalid_field("messages", fmt::format("the model's chat template: {}", error.what()));
  }
}

}  // namespace

std::vector<int32_t> chat_ids(const Json& body, const ApiContext& context) {
  const Fields fields(body);
  Json tools;
  parse_tools(fields, context, tools);
  return render(fields, parse_messages(fields, context), tools, context);
}

std::vector<ApiPrompt> parse_prompts(const Json& body, const char* field, const ApiContext& context,
                                     bool add_special_tokens) {
  const Fields fields(body);
  const Json* value = fields.find(field);
  const auto refuse = [&](const std::string& what) {
    throw invalid_field(field, fmt::format("'{}' must be a text, a list of token ids, or a list of "
                                           "at most {} of either; {}",
                                           field, context.limits.max_prompts, what));
  };
  if (value == nullptr) refuse("it is missing");
  const int64_t vocab = context.model.config().vocab_size;
  std::vector<ApiPrompt> prompts;
  const auto add_ids = [&](const Json& ids) {
    ApiPrompt prompt;
    prompt.ids.reserve(std::min<size_t>(ids.size(), 1 << 20));
    check_prompt_length(std::ssize(ids), field, context);
    for (const Json& id : ids) {
      const auto number = whole_number(id, 0, vocab - 1);
      if (!number) refuse(fmt::format("{} is no token id below {}", shown(id), vocab));
      prompt.ids.push_back(static_cast<int32_t>(*number));
    }
    prompts.push_back(std::move(prompt));
  };
  const auto add_text = [&](const Json& text) {
    ApiPrompt prompt;
    prompt.is_text = true;
    prompt.text = text.get<std::string>();
    // What cannot fit, were all of its tokens long ones (and normalization halved it twice), need
    // not be tokenized to be refused.
    const int64_t tokens_at_least =
        std::ssize(prompt.text) / (4 * std::max(1, context.tokens->max_depth()));
    if (tokens_at_least >= context.limits.max_context)
      check_prompt_length(tokens_at_least, field, context);
    try {
      // A client's text is text: what looks like a special token in it is none.
      prompt.ids = context.model.tokenizer().encode(
          prompt.text, {.add_special_tokens = add_special_tokens, .parse_special = false});
    } catch (const Error& error) {
      throw invalid_field(field, error.what());
    }
    check_prompt_length(std::ssize(prompt.ids), field, context);
    prompts.push_back(std::move(prompt));
  };
  if (value->is_string()) {
    add_text(*value);
    return prompts;
  }
  if (!value->is_array() || value->empty()) refuse("it is " + shown(*value));
  if (value->front().is_number()) {
    add_ids(*value);
    return prompts;
  }
  if (std::ssize(*value) > context.limits.max_prompts)
    refuse(fmt::format("it has {}", value->size()));
  for (const Json& each : *value) {
    if (each.is_string())
      add_text(each);
    else if (each.is_array())
      add_ids(each);
    else
      refuse("it contains " + shown(each));
  }
  return prompts;
}

ApiRequest parse_chat(const Json& body, const ApiContext& context) {
  const Fields fields(body);
  ApiRequest api;
  api.kind = ApiKind::kChat;
  Request request;
  parse_sampling(fields, context, api, request);
  const bool logprobs = fields.boolean("logprobs", false);
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top && *top > 0 && !logprobs)
    throw invalid_field("top_logprobs", "'top_logprobs' needs 'logprobs' to be true");
  if (logprobs) api.top_logprobs = static_cast<int>(top.value_or(0));
  request.options.sampling.logprobs = api.top_logprobs;
  fields.refuse("echo", false, "use /v1/completions");
  fields.refuse("prompt_logprobs", Json(), "use 'echo' and 'logprobs' of /v1/completions");
  fields.refuse("audio", Json(), "answers are texts");
  fields.refuse("modalities", Json::array({"text"}), "answers are texts");
  fields.refuse("functions", Json::array(), "use 'tools'");
  fields.refuse("function_call", "none", "use 'tool_choice'");

  Json tools;
  const auto functions = parse_tools(fields, context, tools);
  const ToolChoice choice = parse_tool_choice(fields, functions);
  request.grammar = parse_structure(fields, context);
  if (choice.mode == ToolChoice::Mode::kForced) {
    if (request.grammar)
      throw invalid_field("tool_choice",
                          "'tool_choice' demands a call, and another field another kind of answer");
    std::vector<std::pair<std::string, Json>> callable;
    std::string source = "tools:";
    for (const auto& function : functions)
      if (choice.name.empty() || function.first == choice.name) {
        callable.push_back(function);
        source += Json(function.first).dump() + function.second.dump();
      }
    request.grammar = compiled(context, "tools", source,
                               [&] { return compile_tool_call(callable, context.tokens); });
  }
  api.parse_tools = choice.mode != ToolChoice::Mode::kNone;
  request.prompt = render(fields, parse_messages(fields, context),
                          choice.mode == ToolChoice::Mode::kNone ? Json() : tools, context);
  check_prompt_length(std::ssize(request.prompt), "messages", context);
  auto most = fields.integer("max_completion_tokens", 1, kMaxInteger);
  const auto older = fields.integer("max_tokens", 1, kMaxInteger);
  if (!most) most = older;
  request.options.max_tokens = most.value_or(context.limits.max_context);
  api.requests.push_back(std::move(request));
  return api;
}

ApiRequest parse_completion(const Json& body, const ApiContext& context) {
  const Fields fields(body);
  ApiRequest api;
  Request request;
  parse_sampling(fields, context, api, request);
  api.echo = fields.boolean("echo", false);
  const auto logprobs = fields.integer("logprobs", 0, 20);
  if (logprobs) api.top_logprobs = static_cast<int>(*logprobs);
  request.options.sampling.logprobs = api.top_logprobs;
  if (api.echo && logprobs) request.prompt_logprobs = api.top_logprobs;
  fields.refuse("suffix", "", "the text is continued at its end");
  fields.refuse("prompt_logprobs", Json(), "use 'echo' and 'logprobs'");
  const int64_t most = fields.integer("max_tokens", 0, kMaxInteger).value_or(16);
  if (most == 0 && !api.echo)
    throw invalid_field("max_tokens", "'max_tokens' must be at least 1 without 'echo'");
  api.no_output = most == 0;
  request.options.max_tokens = std::max<int64_t>(1, most);
  request.grammar = parse_structure(fields, context);
  for (ApiPrompt& prompt :
       parse_prompts(body, "prompt", context, fields.boolean("add_special_tokens", true))) {
    Request one = request;
    one.prompt = std::move(prompt.ids);
    if (api.echo)
      api.echoes.push_back(prompt.is_text ? prompt.text
                                          : context.model.tokenizer().decode(
                                                one.prompt, request.skip_special_tokens));
    api.requests.push_back(std::move(one));
  }
  return api;
}

ApiRequest parse_embedding(const Json& body, const ApiContext& context) {
  const Fields fields(body);
  ApiRequest api;
  api.kind = ApiKind::kEmbedding;
  check_model(fields, context, api);
  const auto format = fields.string("encoding_format", 16).value_or("float");
  if (format != "float" && format != "base64")
    throw invalid_field("encoding_format", "'encoding_format' must be 'float' or 'base64'");
  api.base64 = format == "base64";
  const int64_t width = context.model.config().hidden_size;
  if (const auto dimensions = fields.integer("dimensions", 1, kMaxInteger);
      dimensions && *dimensions != width)
    throw invalid_field("dimensions", fmt::format("'dimensions' must be {}", width));
  for (ApiPrompt& prompt : parse_prompts(body, "input", context, true)) {
    Request one;
    one.prompt = std::move(prompt.ids);
    one.embedding = true;
    one.options.max_tokens = 1;
    one.tenant = fields.string("user", 256).value_or("");
    api.requests.push_back(std::move(one));
  }
  return api;
}

}  // namespace whit
