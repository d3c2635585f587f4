// whit serve MODEL: an OpenAI-compatible server.
#include <random>

#include "cli/command.h"
#include "cli/common.h"
#include "server/service.h"

namespace whit::cli {
namespace {

struct ServeOptions {
  std::string model;
  HttpServerOptions http;
  std::vector<std::string> api_keys;
  std::string api_key_file, served_name, metrics_compat, prefix_caching = "on";
  std::string kv_cache_dtype = "auto", log_level = "info", policy = "max-utilization";
  int64_t max_sequences = 32, max_context = 0, max_queue = 256, max_step_tokens = 256;
  int64_t max_prompt_chunk = 64, cache_mebibytes = 0, draft_tokens = 0;
  int64_t drain_s = 60, body_mebibytes = 8;
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

int serve(const ServeOptions& user) {
  if (user.kv_cache_dtype == "int8")
    throw Error(ErrorKind::kUnsupported,
                "--kv-cache-dtype int8: the attention kernels of this build read caches of f16 and "
                "f32; use auto");
  ServiceOptions options;
  options.http = user.http;
  options.http.drain_timeout = std::chrono::seconds(user.drain_s);
  options.http.max_body_bytes = user.body_mebibytes << 20;
  options.http.max_bodies_bytes =
      std::max(options.http.max_bodies_bytes, 2 * options.http.max_body_bytes);
  options.api_keys = api_keys(user);
  Machine machine(user.machine);
  const int64_t step_tokens = std::max(user.max_step_tokens, user.max_sequences + 1);
  LoadedModel loaded(
      user.model,
      {.max_tokens = step_tokens,
       .max_context = user.max_context,
       .max_logit_rows = std::max<int64_t>({user.max_sequences, user.draft_tokens + 1, 32}),
       .isa = machine.isa,
       .backend = machine.backend},
      machine.pool);
  options.names = {user.served_name.empty() ? default_name(user.model) : user.served_name};
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
  engine.draft_tokens = user.draft_tokens;
  engine.kv_dtype = loaded.model.default_kv_dtype();
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
  app.add_option("--served-model-name", user->served_name, "What clients call the model");
  add_count("--max-num-seqs", user->max_sequences, 1, 1024, "Answers generated together");
  add_count("--max-model-len", user->max_context, 0, int64_t{1} << 28,
            "Longest context, in tokens; 0: the model's");
  add_count("--max-queue", user->max_queue, 0, 1 << 20, "Answers that may wait; others get a 429");
  add_count("--max-num-batched-tokens", user->max_step_tokens, 2, 8192, "Tokens of one step");
  add_count("--max-prompt-chunk", user->max_prompt_chunk, 0, 8192,
            "Prompt tokens of a step while answers are generated; 0: what fits");
  add_count("--kv-cache-memory", user->cache_mebibytes, 0, int64_t{1} << 24,
            "MiB for keys and values; 0: a quarter of the longest contexts, at most 1024");
  app.add_option("--kv-cache-dtype", user->kv_cache_dtype, "auto: the model's")
      ->check(CLI::IsMember({"auto", "int8"}))
      ->capture_default_str();
  app.add_option("--prefix-caching", user->prefix_caching, "Keep the pages of prompts for others")
      ->check(CLI::IsMember({"on", "off"}))
      ->capture_default_str();
  app.add_option("--scheduling-policy", user->policy,
                 "guaranteed-no-evict: start only what can be finished without preemption")
      ->check(CLI::IsMember({"max-utilization", "guaranteed-no-evict"}))
      ->capture_default_str();
  add_count("--draft-tokens", user->draft_tokens, 0, 16,
            "Tokens guessed from the text so far and checked together; 0: none");
  app.add_option("--metrics-compat", user->metrics_compat,
                 "vllm: every figure of /metrics under vLLM's name as well")
      ->check(CLI::IsMember({"vllm"}));
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
