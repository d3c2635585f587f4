#include "server/service.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>

#include "base/embedded.h"
#include "runtime/chat.h"

namespace whit {
namespace {

std::string dumped(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void send_json(const std::shared_ptr<HttpReply>& reply, const Json& body) {
  reply->send({.body = dumped(body)});
}

// Takes as long for a wrong key as for the right one, wherever it differs.
bool equal_in_constant_time(std::string_view given, std::string_view key) {
  size_t different = given.size() ^ key.size();
  for (size_t i = 0; i < given.size(); ++i)
    different |= static_cast<uint8_t>(given[i]) ^ static_cast<uint8_t>(key[i % key.size()]);
  return different == 0;
}

// The password of "Basic base64(user:password)"; browsers send it, so that the page can be used.
std::string basic_password(std::string_view encoded) {
  std::string decoded;
  uint32_t group = 0;
  int bits = 0;
  for (const char c : encoded) {
    uint32_t digit;
    if (c >= 'A' && c <= 'Z')
      digit = static_cast<uint32_t>(c - 'A');
    else if (c >= 'a' && c <= 'z')
      digit = static_cast<uint32_t>(c - 'a' + 26);
    else if (c >= '0' && c <= '9')
      digit = static_cast<uint32_t>(c - '0' + 52);
    else if (c == '+' || c == '/')
      digit = c == '+' ? 62 : 63;
    else
      break;
    group = (group << 6 | digit) & 0xffffff;
    if ((bits += 6) >= 8) {
      bits -= 8;
      decoded += static_cast<char>(group >> bits & 0xff);
    }
  }
  const size_t colon = decoded.find(':');
  return colon == std::string::npos ? "" : decoded.substr(colon + 1);
}

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b,
                            [](char x, char y) { return std::tolower(x) == std::tolower(y); });
}

}  // namespace

const Service::Route Service::kRoutes[] = {
    {"GET", "/", false, &Service::get_page},
    {"GET", "/health", true, &Service::get_health},
    {"GET", "/ready", true, &Service::get_ready},
    {"GET", "/version", false, &Service::get_version},
    {"GET", "/metrics", false, &Service::get_metrics},
    {"GET", "/v1/models", false, &Service::get_models},
    {"GET", "/v1/models/*", false, &Service::get_models},
    {"GET", "/tokenizer_info", false, &Service::get_tokenizer_info},
    {"POST", "/tokenize", false, &Service::post_tokenize},
    {"POST", "/detokenize", false, &Service::post_detokenize},
    {"POST", "/v1/chat/completions", false, &Service::post_chat},
    {"POST", "/v1/completions", false, &Service::post_completion},
    {"POST", "/v1/embeddings", false, &Service::post_embedding},
};

Service::Service(const Model& model, Executor& executor, const ServiceOptions& options)
    : model_(model),
      options_(options),
      context_{.model = model,
               .names = options.names,
               .limits = {},
               .tokens = std::make_shared<const TokenTrie>(model.tokenizer()),
               .grammars = grammars_},
      metrics_(options.names[0], executor.options().max_context, options.vllm_metrics),
      created_(std::time(nullptr)),
      instance_(fmt::format("{:08x}", std::random_device()())) {
  server_ = std::make_unique<HttpServer>(
      options.http,
      HttpServer::Handlers{
          .admit = [this](const HttpRequest& head) { return admit(head); },
          .handle = [this](HttpRequest request,
                           std::shared_ptr<HttpReply> reply) { handle(std::move(request), reply); },
          .refuse =
              [this](int status, std::string message) {
                metrics_.record_rejection(fmt::format("http_{}", status));
                return error_response(ApiError(
                    status, status < 500 ? "invalid_request_error" : "internal_error", message));
              },
          .draining =
              [this] {
                draining_ = true;
                log(LogLevel::kInfo, {{"event", "draining"}});
              },
          .give_up =
              [this] {
                std::lock_guard lock(active_mutex_);
                for (Completion* each : active_) each->cancel();
              }});
  engine_ =
      std::make_unique<EngineLoop>(model, executor, options.engine, [this](StepReport report) {
        // std::function wants a copyable task.
        auto shared = std::make_shared<StepReport>(std::move(report));
        server_->post([this, shared] { deliver(std::move(*shared)); });
      });
  context_.limits.max_context = std::min(engine_->max_context(), engine_->cache_tokens());
  context_.limits.max_choices =
      std::min(context_.limits.max_choices,
               options.engine.scheduler.max_sequences + options.engine.max_queue);
}

Service::~Service() { engine_.reset(); }

void Service::run() {
  log(LogLevel::kInfo, {{"event", "ready"},
                        {"address", address()},
                        {"model", options_.names[0]},
                        {"cache_tokens", engine_->cache_tokens()},
                        {"cache_bytes", engine_->cache_bytes()},
                        {"context", context_.limits.max_context}});
  server_->run();
  log(LogLevel::kInfo, {{"event", "ended"}});
}

void Service::log(LogLevel level, const Json& fields) const {
  static constexpr const char* kNames[] = {"debug", "info", "warning", "error"};
  if (level < options_.log_level) return;
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto milliseconds =
      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm utc{};
  gmtime_r(&seconds, &utc);
  char stamp[32];
  std::strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &utc);
  Json line = {{"time", fmt::format("{}.{:03}Z", stamp, milliseconds)},
               {"level", kNames[static_cast<int>(level)]}};
  line.update(fields);
  fmt::print(stderr, "{}\n", dumped(line));
}

bool Service::authorized(const std::string& authorization) const {
  if (options_.api_keys.empty()) return true;
  const size_t space = authorization.find(' ');
  if (space == std::string::npos) return false;
  const std::string_view scheme = std::string_view(authorization).substr(0, space);
  std::string given =
      authorization.substr(authorization.find_first_not_of(' ', space) == std::string::npos
                               ? authorization.size()
                               : authorization.find_first_not_of(' ', space));
  if (equals_ignoring_case(scheme, "basic"))
    given = basic_password(given);
  else if (!equals_ignoring_case(scheme, "bearer"))
    return false;
  bool found = false;
  for (const std::string& key : options_.api_keys) found |= equal_in_constant_time(given, key);
  return found;
}

HttpResponse Service::error_response(const ApiError& error) const {
  HttpResponse response{.status = error.status(), .body = dumped(error.to_json())};
  if (error.status() == 401)
    response.headers.emplace_back("WWW-Authenticate", "Basic realm=\"whit\", charset=\"UTF-8\"");
  if (error.status() == 429 || error.status() == 503)
    response.headers.emplace_back("Retry-After", "1");
  return response;
}

namespace {

bool matches(std::string_view pattern, std::string_view path) {
  if (pattern.ends_with('*'))
    return path.starts_with(pattern.substr(0, pattern.size() - 1)) && path.size() >= pattern.size();
  return pattern == path;
}

bool takes(std::string_view route, std::string_view method) {
  return route == method || (route == "GET" && method == "HEAD");
}

}  // namespace

std::optional<HttpResponse> Service::admit(const HttpRequest& head) {
  const char* allowed = nullptr;
  const Route* found = nullptr;
  for (const Route& route : kRoutes) {
    if (!matches(route.path, head.path)) continue;
    allowed = route.method;
    if (takes(route.method, head.method)) found = &route;
  }
  const bool open = found != nullptr && found->open;
  if (!open && !authorized(head.authorization)) {
    metrics_.record_rejection("unauthorized");
    return error_response(ApiError(401, "authentication_error",
                                   "the request needs a valid API key: Authorization: Bearer KEY",
                                   "", "invalid_api_key"));
  }
  // A page of another site must not use a server that its visitor's browser can reach.
  if (!open && head.path != "/" &&
      (head.fetch_site == "cross-site" || head.fetch_site == "same-site")) {
    metrics_.record_rejection("cross_site");
    return error_response(
        ApiError(403, "permission_error", "requests from pages of other sites are refused"));
  }
  if (found == nullptr && allowed != nullptr) {
    HttpResponse response = error_response(
        ApiError(405, "invalid_request_error",
                 fmt::format("{} takes {}, not {}", head.path, allowed, head.method)));
    response.headers.emplace_back("Allow", allowed);
    return response;
  }
  if (found == nullptr)
    return error_response(
        ApiError(404, "not_found_error", fmt::format("there is no {}", printable(head.path))));
  return std::nullopt;
}

void Service::handle(HttpRequest request, const Reply& reply) {
  const auto start = std::chrono::steady_clock::now();
  int status = 200;
  const auto refuse = [&](const ApiError& error) {
    status = error.status();
    metrics_.record_rejection(status == 429 ? "queue_full" : "invalid_request");
    reply->send(error_response(error));
  };
  for (const Route& route : kRoutes) {
    if (!takes(route.method, request.method) || !matches(route.path, request.path)) continue;
    try {
      (this->*route.handle)(request, reply);
    } catch (const ApiError& error) {
      refuse(error);
    } catch (const Error& error) {
      const bool theirs = error.kind() == ErrorKind::kInvalidArgument;
      refuse(ApiError(theirs ? 400 : 500, theirs ? "invalid_request_error" : "internal_error",
                      error.what()));
    }
    break;
  }
  if (options_.log_level > LogLevel::kInfo) return;
  const bool quiet =
      request.path == "/health" || request.path == "/metrics" || request.path == "/ready";
  log(quiet ? LogLevel::kDebug : LogLevel::kInfo,
      {{"event", "request"},
       {"method", request.method},
       {"path", request.path},
       {"peer", request.peer},
       {"bytes", request.body.size()},
       {"status", status},
       {"parse_ms",
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
            .count()}});
}

void Service::deliver(StepReport report) {
  metrics_.record(report);
  for (RequestEvent& event : report.events) {
    const auto part = std::static_pointer_cast<Completion::Part>(event.context);
    event.context.reset();
    if (event.last_choice && options_.log_level <= LogLevel::kInfo) {
      const auto ms = [](auto from, auto to) {
        return std::chrono::duration<double, std::milli>(to - from).count();
      };
      const RequestTimes& times = event.times;
      const bool ran = times.first_token != RequestTimes::Clock::time_point();
      log(event.error.empty() ? LogLevel::kInfo : LogLevel::kError,
          {{"event", "answer"},
           {"prompt_tokens", event.prompt_tokens},
           {"cached_tokens", event.cached_tokens},
           {"generated_tokens", event.generated_tokens},
           {"finish_reason", name(event.finish_reason)},
           {"error", event.error},
           {"queue_ms", ran ? Json(ms(times.submitted, times.scheduled)) : Json()},
           {"first_token_ms", ran ? Json(ms(times.submitted, times.first_token)) : Json()},
           {"total_ms", ms(times.submitted, times.finished)}});
    }
    part->completion->on_event(std::move(event), part->index);
  }
}

void Service::get_page(const HttpRequest&, const Reply& reply) {
  reply->send(
      {.content_type = "text/html; charset=utf-8",
       .body = std::string(embedded::chat_page()),
       .headers = {{"Content-Security-Policy",
                    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                    "connect-src 'self'; img-src data:; frame-ancestors 'none'"},
                   {"Referrer-Policy", "no-referrer"}}});
}

void Service::get_health(const HttpRequest&, const Reply& reply) {
  send_json(reply, {{"status", "ok"}});
}

void Service::get_ready(const HttpRequest&, const Reply& reply) {
  if (draining_) throw ApiError(503, "unavailable_error", "the server is shutting down");
  send_json(reply, {{"status", "ready"}});
}

void Service::get_version(const HttpRequest&, const Reply& reply) {
  send_json(reply, {{"version", WHIT_VERSION}});
}

void Service::get_metrics(const HttpRequest&, const Reply& reply) {
  reply->send(
      {.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_.text()});
}

Json Service::model_json(const std::string& name) const {
  Json scheme;
  if (const EngineDirectory* engine = model_.engine())
    scheme = engine->manifest().mode + " " + engine->manifest().scheme_name();
  return {{"id", name},
          {"object", "model"},
          {"created", created_},
          {"owned_by", "whit"},
          {"max_model_len", context_.limits.max_context},
          {"meta",
           {{"description", model_.description()},
            {"scheme", scheme},
            {"parameters", model_.parameters()},
            {"size_bytes", model_.stored_bytes()},
            {"chat", has_chat_template(model_)}}}};
}

void Service::get_models(const HttpRequest& request, const Reply& reply) {
  constexpr std::string_view kPrefix = "/v1/models/";
  if (request.path.starts_with(kPrefix)) {
    const std::string name = request.path.substr(kPrefix.size());
    if (std::find(options_.names.begin(), options_.names.end(), name) == options_.names.end())
      throw ApiError(404, "not_found_error",
                     fmt::format("the model '{}' does not exist", printable(name)), "model",
                     "model_not_found");
    return send_json(reply, model_json(name));
  }
  Json data = Json::array();
  for (const std::string& name : options_.names) data.push_back(model_json(name));
  send_json(reply, {{"object", "list"}, {"data", std::move(data)}});
}

void Service::get_tokenizer_info(const HttpRequest&, const Reply& reply) {
  const TokenizerConfig& config = model_.tokenizer_config();
  const auto or_null = [](const auto& text) { return text ? Json(*text) : Json(); };
  send_json(reply, {{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"bos_token", or_null(config.bos_token)},
                    {"eos_token", or_null(config.eos_token)},
                    {"unk_token", or_null(config.unk_token)},
                    {"pad_token", or_null(config.pad_token)},
                    {"add_bos_token", config.add_bos_token},
                    {"add_eos_token", config.add_eos_token},
                    {"vocab_size", model_.tokenizer().vocab_size()},
                    {"chat_template", [&] {
                       const std::string* source = config.chat_template(false);
                       return source != nullptr ? Json(*source) : Json();
                     }()}});
}

void Service::post_tokenize(const HttpRequest& request, const Reply& reply) {
  const Json body = parse_body(request.body);
  const Fields fields(body);
  std::vector<int32_t> ids;
  if (fields.find("messages") != nullptr) {
    ids = chat_ids(body, context_);
  } else {
    const auto text = fields.string("prompt", options_.http.max_body_bytes);
    if (!text) throw invalid_field("prompt", "'prompt' or 'messages' is missing");
    ids = model_.tokenizer().encode(
        *text, {.add_special_tokens = fields.boolean("add_special_tokens", true),
                .parse_special = fields.boolean("parse_special", true)});
  }
  Json out = {{"count", ids.size()}, {"max_model_len", context_.limits.max_context}};
  out["tokens"] = ids;
  if (fields.boolean("return_token_strs", false)) {
    Json texts = Json::array();
    for (const int32_t id : ids) texts.push_back(std::string(model_.tokenizer().token(id)));
    out["token_strs"] = std::move(texts);
  }
  send_json(reply, out);
}

void Service::post_detokenize(const HttpRequest& request, const Reply& reply) {
  const Json body = parse_body(request.body);
  const Fields fields(body);
  const Json* tokens = fields.find("tokens");
  const int64_t vocab = model_.config().vocab_size;
  std::vector<int32_t> ids;
  if (tokens != nullptr && tokens->is_array())
    for (const Json& token : *tokens)
      if (const auto id = whole_number(token, 0, vocab - 1))
        ids.push_back(static_cast<int32_t>(*id));
  if (tokens == nullptr || !tokens->is_array() || ids.size() != tokens->size())
    throw invalid_field("tokens",
                        fmt::format("'tokens' must be a list of token ids below {}", vocab));
  send_json(
      reply,
      {{"prompt", model_.tokenizer().decode(ids, fields.boolean("skip_special_tokens", false))}});
}

void Service::start(ApiRequest request, const char* prefix, const Reply& reply) {
  if (draining_) throw ApiError(503, "unavailable_error", "the server is shutting down");
  auto requests = request.requests;
  const std::string id = fmt::format("{}-{}{:x}", prefix, instance_, next_id_++);
  // Known from before its construction to after its destruction.
  auto place = std::make_shared<Completion*>(nullptr);
  const auto completion = std::make_shared<Completion>(
      std::move(request), id, reply, model_.tokenizer(),
      [this](RequestId each) { engine_->cancel(each); },
      [this, place] {
        std::lock_guard lock(active_mutex_);
        active_.erase(*place);
      });
  {
    std::lock_guard lock(active_mutex_);
    *place = completion.get();
    active_.insert(completion.get());
  }
  reply->on_gone([weak = std::weak_ptr<Completion>(completion)] {
    if (const auto alive = weak.lock()) alive->cancel();
  });
  for (size_t i = 0; i < requests.size(); ++i) {
    metrics_.record_request(requests[i].choices, requests[i].options.max_tokens);
    requests[i].context = completion->part(static_cast<int64_t>(i));
    try {
      completion->submitted(engine_->submit(std::move(requests[i])));
    } catch (const Error& error) {
      const bool full = error.kind() == ErrorKind::kResource;
      metrics_.record_rejection(full ? "queue_full" : "invalid_request");
      return completion->fail(ApiError(full ? 429 : 400,
                                       full ? "rate_limit_error" : "invalid_request_error",
                                       error.what(), "", full ? "queue_full" : ""));
    }
  }
}

void Service::post_chat(const HttpRequest& request, const Reply& reply) {
  start(parse_chat(parse_body(request.body), context_), "chatcmpl", reply);
}

void Service::post_completion(const HttpRequest& request, const Reply& reply) {
  start(parse_completion(parse_body(request.body), context_), "cmpl", reply);
}

void Service::post_embedding(const HttpRequest& request, const Reply& reply) {
  start(parse_embedding(parse_body(request.body), context_), "embd", reply);
}

}  // namespace whit
