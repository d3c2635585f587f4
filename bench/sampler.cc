// Microseconds per sampled token over SmolLM2's vocabulary of 49152, median and best of 101 calls.
#include "runtime/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string_view>
#include <vector>

namespace whit {
namespace {

constexpr int64_t kVocab = 49152;

void bench(std::string_view what, const SamplerOptions& params) {
  using Clock = std::chrono::steady_clock;
  Sampler sampler(params, kVocab);
  std::vector<float> fresh(kVocab), logits;
  // Logits as a language model's: a few that matter, many that do not.
  for (int64_t i = 0; i < kVocab; ++i)
    fresh[i] = 6 * std::sin(static_cast<float>(i) * 12.9898f) + (i % 4096 == 7 ? 8.0f : 0.0f);
  std::vector<int32_t> history(2000);
  for (size_t i = 0; i < history.size(); ++i) history[i] = static_cast<int32_t>(i * 7919 % kVocab);
  std::vector<double> times;
  for (int i = 0; i < 101; ++i) {
    logits = fresh;
    const auto start = Clock::now();
    sampler.sample(logits, history, history);
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count() * 1e6);
  }
  std::sort(times.begin(), times.end());
  fmt::print("{:32} {:8.1f} us median {:8.1f} best\n", what, times[50], times[0]);
}

}  // namespace
}  // namespace whit

int main() {
  using whit::bench;
  bench("greedy", {.temperature = 0});
  bench("greedy, penalties, 2000 tokens", {.temperature = 0, .repetition_penalty = 1.1f});
  bench("temperature", {.temperature = 0.8f});
  bench("top-k 40", {.temperature = 0.8f, .top_k = 40});
  bench("top-p 0.95", {.temperature = 0.8f, .top_p = 0.95f});
  bench("min-p 0.05", {.temperature = 0.8f, .min_p = 0.05f});
  bench("top-k 40, top-p 0.95, penalties", {.temperature = 0.8f,
                                            .top_k = 40,
                                            .top_p = 0.95f,
                                            .repetition_penalty = 1.1f,
                                            .presence_penalty = 0.5f});
  bench("temperature, 5 logprobs", {.temperature = 0.8f, .logprobs = 5});
}
