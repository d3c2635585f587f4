#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"

namespace whit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_logits(std::mt19937& random, int64_t n, float deviation) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(n);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

int32_t sample_once(Sampler& sampler, std::vector<float> logits,
                    const std::vector<int32_t>& prompt = {},
                    const std::vector<int32_t>& output = {}) {
  return sampler.sample(logits, prompt, output).token;
}

// The probabilities that the header's steps define, by sorting everything, in double. `margin` is
// how far, relatively, the nearest decision of top-p and min-p was from falling differently.
struct Naive {
  std::vector<double> probabilities;
  double margin = 1;
};
Naive naive(const SamplerOptions& params, std::vector<double> l, const std::vector<int32_t>& prompt,
            const std::vector<int32_t>& output) {
  const auto n = static_cast<int32_t>(l.size());
  std::set<int32_t> seen(prompt.begin(), prompt.end());
  seen.insert(output.begin(), output.end());
  for (const int32_t token : seen)
    l[token] =
        l[token] > 0 ? l[token] / params.repetition_penalty : l[token] * params.repetition_penalty;
  for (int32_t token = 0; token < n; ++token) {
    const auto count = std::count(output.begin(), output.end(), token);
    if (count > 0)
      l[token] -= params.frequency_penalty * static_cast<double>(count) + params.presence_penalty;
  }
  for (const auto& [token, bias] : params.logit_bias) l[token] += bias;
  for (double& logit : l) logit /= params.temperature;

  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return l[a] > l[b]; });
  Naive result{std::vector<double>(n, 0)};
  size_t kept = n;
  if (params.top_k > 0 && params.top_k < n) {
    kept = params.top_k;
    while (kept < order.size() && l[order[kept]] == l[order[params.top_k - 1]]) ++kept;
  }
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += std::exp(l[order[i]] - l[order[0]]);
  if (params.top_p < 1) {
    double sum = 0;
    for (size_t i = 0; i < kept; ++i) {
      result.margin = std::min(result.margin, std::fabs(sum / total - params.top_p));
      if (sum >= params.top_p * total)
        kept = i;
      else
        sum += std::exp(l[order[i]] - l[order[0]]);
    }
  }
  double sum = 0;
  for (size_t i = 0; i < kept; ++i) {
    const double p = std::exp(l[order[i]] - l[order[0]]);
    if (params.min_p > 0) result.margin = std::min(result.margin, std::fabs(p / params.min_p - 1));
    if (p < params.min_p) break;
    result.probabilities[order[i]] = p;
    sum += p;
  }
  for (double& p : result.probabilities) p /= sum;
  return result;
}

TEST(SamplerTest, greedy_takes_the_largest_and_the_lowest_id_of_equals) {
  Sampler sampler({.temperature = 0}, 40);
  std::vector<float> logits(40, -1.0f);
  logits[33] = logits[17] = logits[39] = 2.0f;
  EXPECT_EQ(sample_once(sampler, logits), 17);
  logits[39] = 2.5f;
  EXPECT_EQ(sample_once(sampler, logits), 39);
}

TEST(SamplerTest, greedy_applies_penalties_and_bias) {
  std::vector<float> logits = {1.0f, 3.0f, 2.9f, -1.0f};
  Sampler repetition({.temperature = 0, .repetition_penalty = 1.1f}, 4);
  EXPECT_EQ(sample_once(repetition, logits, {1}), 2);
  Sampler presence({.temperature = 0, .presence_penalty = 0.5f}, 4);
  EXPECT_EQ(sample_once(presence, logits, {1}), 1) << "the prompt does not count";
  EXPECT_EQ(sample_once(presence, logits, {}, {1}), 2);
  Sampler bias({.temperature = 0, .logit_bias = {{3, 10.0f}}}, 4);
  EXPECT_EQ(sample_once(bias, logits), 3);
}

TEST(SamplerTest, draws_exactly_the_tokens_that_a_naive_reference_keeps_at_its_probabilities) {
  std::mt19937 random(1);
  int compared = 0;
  for (int round = 0; round < 300; ++round) {
    const int64_t vocab = 2 + random() % 60;
    SamplerOptions params;
    params.temperature = std::array<float, 3>{0.5f, 1.0f, 1.7f}[random() % 3];
    params.top_k = std::array<int64_t, 5>{0, -1, 1, 5, 20}[random() % 5];
    params.top_p = std::array<float, 4>{1.0f, 0.9f, 0.5f, 0.01f}[random() % 4];
    params.min_p = std::array<float, 3>{0.0f, 0.05f, 0.3f}[random() % 3];
    params.repetition_penalty = random() % 2 == 0 ? 1.0f : 1.25f;
    params.presence_penalty = random() % 2 == 0 ? 0.0f : 0.75f;
    params.frequency_penalty = random() % 2 == 0 ? 0.0f : 0.5f;
    params.seed = random();
    if (random() % 2 == 0) params.logit_bias[static_cast<int32_t>(random() % vocab)] = 1.5f;
    std::vector<float> logits = random_logits(random, vocab, 2.0f);
    if (random() % 2 == 0)  // ties
      for (float& logit : logits) logit = std::round(logit);
    std::vector<int32_t> prompt(random() % 10), output(random() % 10);
    for (int32_t& token : prompt) token = static_cast<int32_t>(random() % vocab);
    for (int32_t& token : output) token = static_cast<int32_t>(random() % vocab);
    const Naive want = naive(params, {logits.begin(), logits.end()}, prompt, output);
    if (want.margin < 1e-5) continue;  // either side of a border is right in f32
    ++compared;
    constexpr int kDraws = 200;
    Sampler sampler(params, vocab);
    std::vector<int> counts(vocab, 0);
    for (int i = 0; i < kDraws; ++i) ++counts[sample_once(sampler, logits, prompt, output)];
    for (int64_t token = 0; token < vocab; ++token) {
      const double p = want.probabilities[token];
      if (p == 0) {
        EXPECT_EQ(counts[token], 0) << "token " << token << " was to be removed, round " << round;
      }
      // Six standard deviations and one: wrong in about one of 10⁸ tokens.
      EXPECT_NEAR(counts[token], kDraws * p, 6 * std::sqrt(kDraws * p * (1 - p)) + 1)
          << "round " << round;
    }
  }
  EXPECT_GT(compared, 250);
}

// Σ (observed − expected)² / expected over classes with enough draws; the rest together is one
// class.
void expect_chi_square(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double statistic = 0, rest_expected = 0, rest_observed = 0;
  int classes = 0;
  const auto add = [&](double observed, double expected) {
    statistic += (observed - expected) * (observed - expected) / expected;
    ++classes;
  };
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] * draws >= 10) {
      add(counts[i], p[i] * draws);
    } else {
      rest_observed += counts[i];
      rest_expected += p[i] * draws;
    }
  }
  if (rest_expected >= 10) add(rest_observed, rest_expected);
  const double freedom = classes - 1;
  // Five standard deviations above the mean of χ².
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom)) << classes << " classes";
  EXPECT_GT(statistic, freedom - 5 * std::sqrt(2 * freedom)) << "too even to be random";
}

TEST(SamplerTest, draws_pass_a_chi_square_test_for_each_seed_and_setting) {
  std::mt19937 random(2);
  const std::vector<float> logits = random_logits(random, 300, 1.5f);
  constexpr int kDraws = 8000;
  for (const SamplerOptions& params :
       {SamplerOptions{.seed = 1}, SamplerOptions{.temperature = 0.7f, .seed = 2},
        SamplerOptions{.top_k = 50, .seed = 3}, SamplerOptions{.top_p = 0.8f, .seed = 4},
        SamplerOptions{.min_p = 0.02f, .seed = 5}}) {
    Sampler sampler(params, 300);
    std::vector<int> counts(300, 0);
    for (int i = 0; i < kDraws; ++i) ++counts[sample_once(sampler, logits)];
    expect_chi_square(counts, naive(params, {logits.begin(), logits.end()}, {}, {}).probabilities,
                      kDraws);
  }
}

TEST(SamplerTest, a_seed_fixes_the_tokens_and_another_seed_changes_them) {
  std::mt19937 random(3);
  const std::vector<float> logits = random_logits(random, 1000, 1.0f);
  const auto tokens = [&](uint64_t seed) {
    Sampler sampler({.top_p = 0.95f, .seed = seed}, 1000);
    std::vector<int32_t> result(20);
    for (int32_t& token : result) token = sample_once(sampler, logits);
    return result;
  };
  EXPECT_EQ(tokens(7), tokens(7));
  EXPECT_NE(tokens(7), tokens(8));
}

TEST(SamplerTest, the_random_numbers_are_those_of_every_platform) {
  // Equal logits over 2¹⁰ tokens: the token is the first ten bits of splitmix64's outputs for seed
  // 1234567, whose published first outputs are 6457827717110365317, 3203168211198807973,
  // 9817491932198370423, 4593380528125082431.
  Sampler sampler({.seed = 1234567}, 1024);
  const std::vector<float> logits(1024, 0.5f);
  for (const uint64_t output :
       {6457827717110365317u, 3203168211198807973u, 9817491932198370423u, 4593380528125082431u})
    EXPECT_EQ(sample_once(sampler, logits), static_cast<int32_t>(output >> 54));
}

TEST(SamplerTest, large_vocabularies_keep_what_a_full_sort_would_keep) {
  std::mt19937 random(4);
  const int64_t vocab = 49152;
  for (const SamplerOptions& params :
       {SamplerOptions{.top_k = 40}, SamplerOptions{.top_p = 0.9f},
        SamplerOptions{.temperature = 3.0f, .top_p = 0.99f},
        SamplerOptions{.top_k = 20000, .top_p = 0.999f},
        SamplerOptions{.temperature = 0.05f, .top_k = 1000},
        SamplerOptions{.top_k = 100, .top_p = 0.7f, .min_p = 0.01f}}) {
    const std::vector<float> logits = random_logits(random, vocab, 3.0f);
    const Naive want = naive(params, {logits.begin(), logits.end()}, {}, {});
    Sampler sampler(params, vocab);
    for (int i = 0; i < 20; ++i)
      EXPECT_GT(want.probabilities[sample_once(sampler, logits)], 0) << params.top_k;
  }
}

TEST(SamplerTest, nan_and_infinities_are_handled) {
  for (const float temperature : {0.0f, 1.0f})
    for (const SamplerOptions& filter :
         {SamplerOptions{}, SamplerOptions{.top_k = 2, .top_p = 0.5f, .min_p = 0.1f}}) {
      SamplerOptions params = filter;
      params.temperature = temperature;
      Sampler sampler(params, 20);
      std::vector<float> logits(20, kNan);
      EXPECT_THROW(sample_once(sampler, logits), Error);
      std::fill(logits.begin(), logits.end(), -kInfinity);
      EXPECT_THROW(sample_once(sampler, logits), Error);
      logits[3] = kNan;
      logits[9] = -80.0f;
      for (int i = 0; i < 5; ++i) EXPECT_EQ(sample_once(sampler, logits), 9);
      logits[4] = logits[18] = kInfinity;
      for (int i = 0; i < 5; ++i) {
        const int32_t token = sample_once(sampler, logits);
        EXPECT_TRUE(token == 4 || (token == 18 && temperature > 0)) << token;
      }
      // The largest float over the smallest temperature is still a number.
      std::fill(logits.begin(), logits.end(), -3e38f);
      logits[5] = 3e38f;
      EXPECT_EQ(sample_once(sampler, logits), 5);
    }
}

TEST(SamplerTest, ids_outside_of_the_vocabulary_in_the_history_are_ignored) {
  Sampler sampler({.temperature = 0, .repetition_penalty = 2.0f, .presence_penalty = 1.0f}, 4);
  EXPECT_EQ(sample_once(sampler, {1, 2, 3, 4}, {-1, 4, 1 << 30}, {-5, 99}), 3);
}

TEST(SamplerTest, penalties_leave_no_trace_in_the_next_call) {
  Sampler sampler({.temperature = 0, .repetition_penalty = 2.0f, .frequency_penalty = 1.0f}, 3);
  EXPECT_EQ(sample_once(sampler, {3.0f, 2.0f, 1.0f}, {0}, {0, 0}), 1);
  EXPECT_EQ(sample_once(sampler, {3.0f, 2.0f, 1.0f}), 0);
}

TEST(SamplerTest, logprobs_are_those_of_the_logits_as_they_came) {
  std::mt19937 random(5);
  const std::vector<float> logits = random_logits(random, 500, 3.0f);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
  const double lse = std::log(sum);
  for (const float temperature : {0.0f, 0.5f}) {
    Sampler sampler({.temperature = temperature,
                     .top_k = 3,
                     .repetition_penalty = 1.5f,
                     .seed = 9,
                     .logprobs = 5},
                    500);
    std::vector<float> copy = logits;
    const std::vector<int32_t> prompt = {1, 2, 3};
    const SampledToken result = sampler.sample(copy, prompt, {});
    // Two roundings of numbers below 32, and 4e-7 of the sum.
    EXPECT_NEAR(result.logprob, logits[result.token] - lse, 2 * 32 * 0x1p-24 + 4e-7);
    ASSERT_EQ(result.top.size(), 5u);
    std::vector<float> sorted = logits;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(logits[result.top[i].token], sorted[i]);
      EXPECT_NEAR(result.top[i].logprob, sorted[i] - lse, 2 * 32 * 0x1p-24 + 4e-7);
    }
  }
  Sampler only_chosen({.temperature = 0, .logprobs = 0}, 500);
  std::vector<float> copy = logits;
  EXPECT_TRUE(only_chosen.sample(copy, {}, {}).top.empty());
  Sampler more_than_vocab({.logprobs = 20}, 3);
  std::vector<float> three = {1, kNan, 1};
  const SampledToken result = more_than_vocab.sample(three, {}, {});
  ASSERT_EQ(result.top.size(), 3u);
  EXPECT_EQ(result.top[0].token, 0) << "of equals the lower id first";
  EXPECT_EQ(result.top[2].logprob, -kInfinity);
}

TEST(SamplerTest, parameters_out_of_range_are_refused_by_name) {
  const auto message = [](const SamplerOptions& params) -> std::string {
    try {
      Sampler sampler(params, 10);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      return error.what();
    }
    return "accepted";
  };
  const auto refused = [&](const char* field, const SamplerOptions& params) {
    EXPECT_NE(message(params).find(field), std::string::npos) << message(params);
  };
  for (const float bad : {-1.0f, kNan, kInfinity}) refused("temperature", {.temperature = bad});
  refused("top_k", {.top_k = -2});
  for (const float bad : {0.0f, -0.5f, 1.5f, kNan}) refused("top_p", {.top_p = bad});
  for (const float bad : {-0.1f, 1.1f, kNan}) refused("min_p", {.min_p = bad});
  for (const float bad : {0.0f, -1.0f, kNan, kInfinity})
    refused("repetition_penalty", {.repetition_penalty = bad});
  for (const float bad : {-2.1f, 2.1f, kNan})
    refused("presence_penalty", {.presence_penalty = bad});
  for (const float bad : {-2.1f, 2.1f, kNan})
    refused("frequency_penalty", {.frequency_penalty = bad});
  for (const int bad : {-2, 21}) refused("logprobs", {.logprobs = bad});
  refused("token 10", {.logit_bias = {{10, 1.0f}}});
  refused("token -1", {.logit_bias = {{-1, 1.0f}}});
  refused("logit_bias", {.logit_bias = {{1, kNan}}});
  EXPECT_EQ(message({.top_k = 1 << 30}), "accepted");
  Sampler sampler({}, 10);
  std::vector<float> nine(9);
  EXPECT_THROW(sampler.sample(nine, {}, {}), Error);
}

}  // namespace
}  // namespace whit
