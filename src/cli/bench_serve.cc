#include "cli/bench_serve.h"

#include "cli/common.h"
#include "server/load_generator.h"

namespace whit::cli {
namespace {

struct BenchServeOptions {
  LoadOptions load;
  bool json = false;
};

int run(const BenchServeOptions& user) {
  LoadOptions options = user.load;
  if (options.shared_tokens > options.prompt_tokens)
    throw Error(ErrorKind::kInvalidArgument, "{} shared tokens are more than the prompt's {}",
                options.shared_tokens, options.prompt_tokens);
  if (options.concurrency == 0 && options.rate == 0)
    throw Error(ErrorKind::kInvalidArgument,
                "give --concurrency, --request-rate, or both as a bound and a rate");
  const LoadResult result = generate_load(options);
  const Json json = to_json(options, result);
  if (user.json) {
    print_json(json);
  } else {
    const auto line = [&](const std::string& name, const std::string& value) {
      fmt::print("{:<40}{:>10}\n", name + ":", value);
    };
    const auto number = [&](const char* key) {
      return fmt::format("{:.2f}", json[key].get<double>());
    };
    fmt::print("{:=^50}\n", " Serving Benchmark Result ");
    line("Successful requests", fmt::format("{}", result.completed));
    line("Failed requests", fmt::format("{}", result.failed));
    line("Benchmark duration (s)", number("duration"));
    line("Total input tokens", fmt::format("{}", result.prompt_tokens));
    line("Total generated tokens", fmt::format("{}", result.output_tokens));
    line("Request throughput (req/s)", number("request_throughput"));
    line("Request goodput (req/s)", number("request_goodput"));
    line("Output token throughput (tok/s)", number("output_throughput"));
    line("Total token throughput (tok/s)", number("total_token_throughput"));
    line("Client CPU time (s)", number("client_cpu_s"));
    for (const auto& [name, title] : {std::pair("ttft", "Time to First Token"),
                                      std::pair("tpot", "Time per Output Token (excl. 1st token)"),
                                      std::pair("itl", "Inter-token Latency")}) {
      fmt::print("{:-^50}\n", title);
      std::string upper = name;
      for (char& c : upper) c = static_cast<char>(std::toupper(c));
      for (const char* statistic : {"mean", "median", "p90", "p99"})
        line(fmt::format("{} {} (ms)", statistic, upper),
             number(fmt::format("{}_{}_ms", statistic, name).c_str()));
    }
    fmt::print("{:=^50}\n", "");
    if (!result.first_failure.empty())
      fmt::print(stderr, "first failure: {}\n", result.first_failure);
  }
  return result.failed == 0 ? 0 : 1;
}

}  // namespace

Action add_bench_serve(CLI::App& app) {
  auto user = std::make_shared<BenchServeOptions>();
  LoadOptions& load = user->load;
  app.add_option("--host", load.host, "The server's address")->capture_default_str();
  app.add_option("--port", load.port, "Its port")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--model", load.model, "The model's name, where the server wants one");
  app.add_option("--api-key", load.api_key, "The server's key");
  const auto add_count = [&app](const char* name, int64_t& value, int64_t least, const char* help) {
    app.add_option(name, value, help)
        ->check(CLI::Range(least, int64_t{1} << 24))
        ->capture_default_str();
  };
  add_count("--num-prompts", load.requests, 1, "Requests");
  add_count("--concurrency", load.concurrency, 0, "Most requests at a time; 0: no bound");
  app.add_option("--request-rate", load.rate, "Requests a second, at random times; 0: closed loop")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  add_count("--input-len", load.prompt_tokens, 1, "Words of each prompt");
  add_count("--shared-len", load.shared_tokens, 0, "Of these, the same in all prompts");
  add_count("--output-len", load.output_tokens, 1, "Tokens of each answer");
  app.add_option("--seed", load.seed, "Of prompts and times")->capture_default_str();
  app.add_option("--goodput-ttft", load.ttft_limit_ms, "Largest TTFT of a good request, in ms");
  app.add_option("--goodput-tpot", load.tpot_limit_ms, "Largest TPOT of a good request, in ms");
  app.add_option("--timeout", load.timeout_s, "Seconds for everything")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  add_json(app, user->json);
  return [user] { return run(*user); };
}

}  // namespace whit::cli
