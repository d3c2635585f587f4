// whit serve MODEL: an OpenAI-compatible server.
#include <random>

#include "cli/command.h"
#include "cli/common.h"
#include "cli/quality_options.h"
#include "cli/tuned.h"
#include "server/service.h"

namespace whit::cli {
namespace {

struct ServeOptions {
  std::string model;
  HttpServerOptions http;
  std::vector<std::string> api_keys, served_names;
  std::string api_key_file, metrics_compat, prefix_caching = "on";
  std::string kv_cache_dtype = "auto", log_level = "info", policy = "max-utilization";
  int64_t max_sequences = 32, max_context = 0, max_queue = 256, max_step_tokens = 256;
  std::string draft_model;
  int64_t max_prompt_chunk = 16, cache_mebibytes = 0, draft_tokens = -1;
  int64_t drain_s = 60, body_mebibytes = 8;
  QualityLimits limits;
  MachineOptions machine;
};

std::vector<std::string> api_keys(const ServeOptions& user) {
  std::vector<std::string> keys = user.api_keys;
  if (!user.api_key_file.empty()) {
    std::string text = read_text_file(user.api_key_file);
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find_first_of("\r\n", begin), text.size());
      if (end > begin) keys.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  for (const std::string& key : keys)
    if (key.empty() || key.size() > 512)
      throw Error(ErrorKind::kInvalidArgument, "an API key must have 1 to 512 bytes");
  return keys;
}

// What clients call the model: the last part of its path, without ".gguf".
std::string default_name(const std::string& model) {
  std::filesystem::path path = std::filesystem::path(model).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path == ".") path = std::filesystem::current_path();
  return path.extension() == ".gguf" ? path.stem().string() : path.filename().string();
}

LogLevel log_level(const std::string& name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "warning") return LogLevel::kWarning;
  return name == "error" ? LogLevel::kError : LogLevel::kInfo;
}

// A loop's guesses by default: none by prompt lookup; of a model as many as a typical one gets
// right.
int64_t draft_tokens(const ServeOptions& user) {
  if (user.draft_tokens >= 0) return user.draft_tokens;
  return user.draft_model.empty() ? 0 : 4;
}

int serve(const ServeOptions& user) {
  ServiceOptions options;
  options.http = user.http;
  options.http.drain_timeout = std::chrono::seconds(user.drain_s);
  options.http.max_body_bytes = user.body_mebibytes << 20;
  options.http.max_bodies_bytes =
      std::max(options.http.max_bodies_bytes, 2 * options.http.max_body_bytes);
  options.api_keys = api_keys(user);
  if (const Model model = Model::open(user.model, Verification::kLater); model.engine() != nullptr)
    check_quality(model.engine()->manifest().quality, user.limits, user.model);
  Machine machine(tuned(user.machine, user.model));
  const int64_t step_tokens = std::max(user.max_step_tokens, user.max_sequences + 1);
  LoadedModel loaded(
      user.model,
      {.max_tokens = step_tokens,
       .max_context = user.max_context,
       .max_logit_rows = std::max<int64_t>({user.max_sequences, draft_tokens(user) + 1, 32}),
       .isa = machine.isa,
       .backend = machine.backend},
      machine.pool, TokenizerUse::kSoon);
  options.names = user.served_names;
  if (options.names.empty()) options.names = {default_name(user.model)};
  for (const std::string& name : options.names)
    if (name.empty() || name.size() > 1024)
      throw Error(ErrorKind::kInvalidArgument, "--served-model-name must have 1 to 1024 bytes");
  options.vllm_metrics = user.metrics_compat == "vllm";
  options.log_level = log_level(user.log_level);
  EngineLoopOptions& engine = options.engine;
  engine.scheduler = {.max_sequences = user.max_sequences,
                      .max_step_tokens = step_tokens,
                      .max_prompt_chunk = user.max_prompt_chunk,
                      .max_context = loaded.executor->options().max_context,
                      .policy = user.policy == "guaranteed-no-evict"
                                    ? SchedulerPolicy::kGuaranteedNoEvict
                                    : SchedulerPolicy::kMaxUtilization,
                      .prefix_caching = user.prefix_caching == "on"};
  engine.max_queue = user.max_queue;
  engine.cache_bytes = user.cache_mebibytes << 20;
  engine.draft_tokens = draft_tokens(user);
  engine.kv_dtype = loaded.kv_format(user.kv_cache_dtype);
  std::optional<LoadedModel> draft;
  if (!user.draft_model.empty()) {
    const int64_t context = loaded.executor->options().max_context;
    Model model = Model::open(user.draft_model);
    check_draft_model(model, loaded.model, context);
    draft.emplace(std::chrono::steady_clock::now(), std::move(model),
                  ExecutorOptions{.max_tokens = step_tokens + user.max_sequences,
                                  .max_context = context,
                                  .max_logit_rows = user.max_sequences,
                                  .isa = machine.isa,
                                  .backend = machine.backend},
                  machine.pool);
    engine.draft = draft->executor.get();
    engine.draft_kv_dtype = draft->kv_format("auto");
  }
  engine.hash_seed = uint64_t{std::random_device()()} << 32 | std::random_device()();
  Service service(loaded.model, *loaded.executor, options);
  fmt::print("whit: serving {} at {}\n", options.names[0], service.address());
  std::fflush(stdout);
  service.run();
  return 0;
}

}  // namespace

Action add_serve(CLI::App& app) {
  auto user = std::make_shared<ServeOptions>();
  const auto add_count = [&app](const char* name, int64_t& value, int64_t least, int64_t most,
                                const char* help) {
    app.add_option(name, value, help)->check(CLI::Range(least, most))->capture_default_str();
  };
  add_model(app, user->model);
  app.add_option("--host", user->http.host, "Address to listen on; 0.0.0.0 for all")
      ->capture_default_str();
  app.add_option("--port", user->http.port, "Port; 0: any that is free")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--api-key", user->api_keys, "A key that requests must have; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--api-key-file", user->api_key_file, "A file with such keys, one a line");
  app.add_option("--served-model-name", user->served_names,
                 "What clients call the model; may be repeated, the first is the one shown")
      ->take_all()
      ->allow_extra_args(false);
  add_count("--max-num-seqs", user->max_sequences, 1, 1024, "Answers generated together");
  add_count("--max-model-len", user->max_context, 0, int64_t{1} << 28,
            "Longest context, in tokens; 0: the model's");
  add_count("--max-queue", user->max_queue, 0, 1 << 20, "Answers that may wait; others get a 429");
  add_count("--max-num-batched-tokens", user->max_step_tokens, 2, 8192, "Tokens of one step");
  add_count(
      "--max-prompt-chunk", user->max_prompt_chunk, 0, 8192,
      "Prompt tokens of a step while answers are generated (or twice as many as they are; more "
      "while requests wait for free places); small: steadier answers, large: sooner first "
      "tokens; 0: what fits");
  add_count("--kv-cache-memory", user->cache_mebibytes, 0, int64_t{1} << 24,
            "MiB for keys and values; 0: a quarter of the longest contexts, at most 1024");
  add_kv_cache_dtype(app, user->kv_cache_dtype);
  app.add_option("--prefix-caching", user->prefix_caching, "Keep the pages of prompts for others")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--scheduling-policy", user->policy,
                 "guaranteed-no-evict: start only what can be finished without preemption")
      ->check(CLI::IsMember({"max-utilization", "guaranteed-no-evict"}))
      ->capture_default_str();
  app.add_option("--draft-model", user->draft_model,
                 "A smaller model with the same tokens, whose guesses are checked: same answers");
  app.add_option("--draft-tokens", user->draft_tokens,
                 "Tokens guessed and checked together, by --draft-model (default 4) or else from "
                 "the text so far (default 0: none)")
      ->check(CLI::Range(int64_t{0}, int64_t{16}));
  app.add_option("--metrics-compat", user->metrics_compat,
                 "vllm: every figure of /metrics under vLLM's name as well")
      ->check(CLI::IsMember({"vllm"}));
  add_limits(app, user->limits);
  app.add_option("--ssl-certfile", user->http.certificate_file, "Certificate chain (PEM), for TLS");
  app.add_option("--ssl-keyfile", user->http.key_file, "Its private key (PEM)");
  add_count("--max-connections", user->http.max_connections, 1, 1 << 20, "Connections at a time");
  add_count("--max-body-size", user->body_mebibytes, 1, 1024, "Largest request, in MiB");
  add_count("--drain-timeout", user->drain_s, 0, 86400,
            "Seconds that running answers have after SIGTERM");
  app.add_option("--log-level", user->log_level, "Structured logs go to stderr")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  user->machine.add_to(app);
  user->machine.add_backend(app);
  app.footer(R"(
Serves OpenAI's API (/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models), /tokenize, /detokenize,
/metrics, /health, /ready, and a chat page at /. One line with the address is printed when ready. SIGTERM: answers that
are being generated are finished, then the exit status is 0.

Example:
  whit serve smol-w4a8 --port 8000
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}')");
  return [user] { return serve(*user); };
}

}  // namespace whit::cli
