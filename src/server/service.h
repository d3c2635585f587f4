// The routes of `whit serve`: OpenAI's API, what its users expect around it, and figures.
//
// Threads: the input thread of http_server dispatches events and streams; worker threads parse,
// tokenize and submit; the engine's own thread computes. Handlers share nothing but this object.
#pragma once

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "runtime/grammar/token_trie.h"
#include "server/api_request.h"
#include "server/completion.h"
#include "server/http_server.h"
#include "server/metrics.h"

namespace whit {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct ServiceOptions {
  HttpServerOptions http;
  EngineLoopOptions engine;
  std::vector<std::string> api_keys;  // none: everybody may ask
  std::vector<std::string> names;     // of the model
  bool vllm_metrics = false;
  LogLevel log_level = LogLevel::kInfo;
};

class Service {
 public:
  // The model and the executor must outlive the service.
  Service(const Model& model, Executor& executor, const ServiceOptions& options);
  ~Service();

  std::string address() const { return server_->address(); }
  // Serves until a signal, then until all requests are answered.
  void run();

 private:
  using Reply = std::shared_ptr<HttpReply>;
  struct Route {
    const char* method;
    const char* path;
    bool open;  // without a key
    void (Service::*handle)(const HttpRequest&, const Reply&);
  };
  static const Route kRoutes[];

  std::optional<HttpResponse> admit(const HttpRequest& head);
  void handle(HttpRequest request, const Reply& reply);
  bool authorized(const std::string& authorization) const;
  HttpResponse error_response(const ApiError& error) const;
  void deliver(StepReport report);
  void log(LogLevel level, const Json& fields) const;

  void get_page(const HttpRequest&, const Reply& reply);
  void get_health(const HttpRequest&, const Reply& reply);
  void get_ready(const HttpRequest&, const Reply& reply);
  void get_version(const HttpRequest&, const Reply& reply);
  void get_metrics(const HttpRequest&, const Reply& reply);
  void get_models(const HttpRequest&, const Reply& reply);
  void get_tokenizer_info(const HttpRequest&, const Reply& reply);
  void post_tokenize(const HttpRequest&, const Reply& reply);
  void post_detokenize(const HttpRequest&, const Reply& reply);
  void post_chat(const HttpRequest&, const Reply& reply);
  void post_completion(const HttpRequest&, const Reply& reply);
  void post_embedding(const HttpRequest&, const Reply& reply);
  void start(ApiRequest request, const char* prefix, const Reply& reply);
  Json model_json(const std::string& name) const;

  const Model& model_;
  ServiceOptions options_;
  GrammarCache grammars_;
  ApiContext context_;
  ServerMetrics metrics_;
  int64_t created_;
  std::string instance_;  // part of ids: of this process
  std::atomic<uint64_t> next_id_{1};
  std::atomic<bool> draining_{false};
  std::mutex active_mutex_;
  std::set<Completion*> active_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<EngineLoop> engine_;  // ends before the server that it posts to
};

}  // namespace whit
