#include "cli/quality_options.h"

namespace whit::cli {

void add_limits(CLI::App& app, QualityLimits& limits) {
  app.add_option_function<std::string>(
      "--max-ppl-increase",
      [&limits](const std::string& text) {
        try {
          limits.ppl_increase = parse_share(text);
        } catch (const Error& error) {
          throw CLI::ValidationError("--max-ppl-increase", error.what());
        }
      },
      "Refuse an engine whose perplexity is more than this share above the original's: 0.05 or 5%");
  app.add_option("--max-kld", limits.kld,
                 "Refuse an engine whose mean KL divergence from the original is above this (nats)")
      ->check(CLI::Range(0.0, 1e6));
}

void add_quality(CLI::App& app, QualityRequest& request) {
  add_limits(app, request.limits);
  app.add_flag(
      "--evaluate", request.measure,
      "Measure perplexity and KL divergence on held-out text and record them in the engine "
      "(with a limit it is always done)");
  app.add_option("--eval-text", request.text, "The held-out text [prose, code, dialogue, built in]")
      ->check(CLI::ExistingFile);
  app.add_option("--eval-windows", request.max_windows,
                 "Score at most so many windows of 512 tokens; 0: all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32))
      ->capture_default_str();
}

}  // namespace whit::cli
