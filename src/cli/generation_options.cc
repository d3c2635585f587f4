#include "cli/generation_options.h"

#include <random>

#include "cli/common.h"

namespace whit::cli {

void UserGenerationOptions::add_to(CLI::App& app) {
  SamplerOptions& sampling = generation.sampling;
  const double huge = 1e6;
  app.add_option("-n,--max-tokens", generation.max_tokens, "Longest answer, in tokens")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--temperature", sampling.temperature, "0: always the likeliest token")
      ->check(CLI::Range(0.0, huge))
      ->capture_default_str();
  app.add_option("--top-k", sampling.top_k, "Choose among the k likeliest tokens; 0: among all")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--top-p", sampling.top_p,
                 "Choose among the likeliest tokens that hold this probability")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
  app.add_option("--min-p", sampling.min_p,
                 "Leave out tokens below this share of the likeliest one's probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--repetition-penalty", sampling.repetition_penalty,
                 "Above 1: tokens seen before become unlikelier")
      ->check(CLI::Range(1e-3, huge))
      ->capture_default_str();
  app.add_option("--presence-penalty", sampling.presence_penalty,
                 "Taken from the logit of every token generated before")
      ->check(CLI::Range(-2.0, 2.0))
      ->capture_default_str();
  app.add_option("--frequency-penalty", sampling.frequency_penalty,
                 "The same, for each time it was generated")
      ->check(CLI::Range(-2.0, 2.0))
      ->capture_default_str();
  app.add_option("--seed", seed, "Makes sampling repeatable");
  app.add_option("--stop", generation.stop, "Text that ends the answer; may be given several times")
      ->take_all()
      ->allow_extra_args(false);
  app.add_flag("--ignore-eos", generation.ignore_eos, "Go on after the end-of-sequence token");
  add_kv_cache_dtype(app, kv_cache_dtype);
  app.add_option("--ctx-size", ctx_size, "Longest context, in tokens; 0: the model's")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 28))
      ->capture_default_str();
}

GenerationOptions UserGenerationOptions::resolved() const {
  GenerationOptions options = generation;
  options.sampling.seed =
      seed ? *seed : (uint64_t{std::random_device()()} << 32 | std::random_device()());
  return options;
}

}  // namespace whit::cli
