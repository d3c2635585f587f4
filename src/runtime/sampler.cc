#include "runtime/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace whit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kMaxLogprobs = 20;
// Borders of top-k and top-p are found by bins of this many per unit of the scaled logit, 32 units
// in all.
constexpr int kBins = 2048;
constexpr float kBinsPerUnit = 64;

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), figure 15
// with the constants of variant 13.
uint64_t split_mix(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Uniform in [0, 1), 53 bits.
double uniform(uint64_t& state) { return static_cast<double>(split_mix(state) >> 11) * 0x1p-53; }

// e^x for x ≤ 0 with a relative error below 4e-7; 0 below −87 and for NaN. Only products and sums,
// so the same everywhere, and a loop over it is vectorised.
inline float exp_of_nonpositive(float x) {
  const float y = x > -87.0f ? x : -87.0f;
  constexpr float kMagic = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  const float n = (y * 1.44269504f + kMagic) - kMagic;
  // ln 2 in two parts, the first short enough for an exact product with n.
  const float f = ((y - n * 0.693359375f) + n * 2.12194440e-4f) * 1.44269504f;
  float p = 0x1.5bba14p-10f;  // 2^f on [−½, ½], minimax
  p = p * f + 0x1.3cea88p-7f;
  p = p * f + 0x1.c6b752p-5f;
  p = p * f + 0x1.ebf9bcp-3f;
  p = p * f + 0x1.62e42ap-1f;
  p = p * f + 1.0f;
  const auto bits = std::bit_cast<int32_t>(p) + static_cast<int32_t>(n) * (1 << 23);
  return x > -87.0f ? std::bit_cast<float>(bits) : 0.0f;
}

// Largest element, NaN ignored; −∞ if there is none.
float largest_of(std::span<const float> x) {
  std::array<float, 16> lanes;
  lanes.fill(-kInfinity);
  size_t i = 0;
  for (; i + lanes.size() <= x.size(); i += lanes.size())
    for (size_t lane = 0; lane < lanes.size(); ++lane)
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  float largest = -kInfinity;
  for (const float value : lanes) largest = std::max(largest, value);
  for (; i < x.size(); ++i) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

int bin_of(float logit) {
  const float distance = -logit * kBinsPerUnit;
  return distance < kBins - 1 ? static_cast<int>(distance) : kBins - 1;
}

void require(bool condition, const char* field, double value, const char* allowed) {
  if (!condition)
    throw Error(ErrorKind::kInvalidArgument, "sampling: {} = {} is out of range; it must be {}",
                field, value, allowed);
}

}  // namespace

void SamplerOptions::validate(int64_t vocab_size) const {
  require(std::isfinite(temperature) && temperature >= 0, "temperature", temperature,
          "a finite number ≥ 0");
  require(top_k >= -1, "top_k", static_cast<double>(top_k), "≥ 1, or 0 or -1 for all tokens");
  require(top_p > 0 && top_p <= 1, "top_p", top_p, "in (0, 1]");
  require(min_p >= 0 && min_p <= 1, "min_p", min_p, "in [0, 1]");
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty",
          repetition_penalty, "a finite number > 0");
  require(std::fabs(presence_penalty) <= 2, "presence_penalty", presence_penalty, "in [-2, 2]");
  require(std::fabs(frequency_penalty) <= 2, "frequency_penalty", frequency_penalty, "in [-2, 2]");
  require(logprobs >= -1 && logprobs <= kMaxLogprobs, "logprobs", logprobs,
          "in 0 ... 20, or -1 for none");
  for (const auto& [token, bias] : logit_bias) {
    if (token < 0 || token >= vocab_size)
      throw Error(ErrorKind::kInvalidArgument,
                  "sampling: logit_bias names token {}; the vocabulary has tokens 0 ... {}", token,
                  vocab_size - 1);
    require(std::isfinite(bias), "logit_bias", bias, "finite");
  }
}

Sampler::Sampler(const SamplerOptions& params, int64_t vocab_size)
    : params_(params), vocab_size_(vocab_size), random_state_(params.seed) {
  params_.validate(vocab_size);
}

void Sampler::apply_penalties(std::span<float> logits, std::span<const int32_t> prompt,
                              std::span<const int32_t> output) {
  if (params_.repetition_penalty == 1 && params_.presence_penalty == 0 &&
      params_.frequency_penalty == 0)
    return;
  std::vector<int32_t>& counts = workspace_->counts;
  if (static_cast<int64_t>(counts.size()) < vocab_size_) counts.resize(vocab_size_);
  const auto known = [&](int32_t token) { return token >= 0 && token < vocab_size_; };
  for (const int32_t token : output)
    if (known(token)) ++counts[token];
  // −1 marks a prompt token that is not in the output, once penalised; ~count an output token once
  // penalised.
  if (params_.repetition_penalty != 1)
    for (const int32_t token : prompt)
      if (known(token) && counts[token] == 0) {
        counts[token] = -1;
        float& logit = logits[token];
        logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
      }
  for (const int32_t token : output)
    if (known(token) && counts[token] > 0) {
      float& logit = logits[token];
      logit = logit > 0 ? logit / params_.repetition_penalty : logit * params_.repetition_penalty;
      logit -=
          params_.frequency_penalty * static_cast<float>(counts[token]) + params_.presence_penalty;
      counts[token] = -1;
    }
  for (const std::span<const int32_t> tokens : {prompt, output})
    for (const int32_t token : tokens)
      if (known(token)) counts[token] = 0;
}

double log_sum_exp(std::span<const float> logits, int count, SamplerWorkspace& workspace) {
  const auto vocab = static_cast<int64_t>(logits.size());
  std::vector<float>& weights = workspace.weights;
  weights.resize(logits.size());
  const float largest = largest_of(logits);
  for (int64_t i = 0; i < vocab; ++i) weights[i] = exp_of_nonpositive(logits[i] - largest);
  double sum = 0;
  for (const float weight : weights) sum += weight;
  const double total = largest + std::log(sum);
  // The most probable, by insertion: they are few and most tokens fail the first comparison.
  std::vector<TokenLogprob>& top = workspace.top;
  top.clear();
  const auto n = static_cast<size_t>(std::min<int64_t>(count, vocab));
  for (int32_t other = 0; other < vocab && n > 0; ++other) {
    const float logit = std::isnan(logits[other]) ? -kInfinity : logits[other];
    if (top.size() == n && !(logit > top.back().logprob)) continue;
    if (top.size() == n) top.pop_back();
    const auto after = std::find_if(
        top.begin(), top.end(), [&](const TokenLogprob& entry) { return logit > entry.logprob; });
    top.insert(after, {other, logit});
  }
  for (TokenLogprob& entry : top) entry.logprob = static_cast<float>(entry.logprob - total);
  return total;
}

void Sampler::collect(std::span<const float> logits, float largest) {
  std::vector<Candidate>& candidates = workspace_->candidates;
  std::vector<float>& weights = workspace_->weights;
  weights.resize(vocab_size_);
  const float inverse = 1.0f / params_.temperature;
  candidates.clear();
  if (largest == kInfinity) {
    for (int32_t token = 0; token < vocab_size_; ++token)
      if (logits[token] == kInfinity) candidates.push_back({0, 1, token});
    return;
  }
  for (int64_t i = 0; i < vocab_size_; ++i)
    weights[i] = exp_of_nonpositive((logits[i] - largest) * inverse);
  for (int32_t token = 0; token < vocab_size_; ++token)
    if (weights[token] > 0)
      candidates.push_back({(logits[token] - largest) * inverse, weights[token], token});
}

void Sampler::take_border(int bin) {
  std::vector<Candidate>& border = workspace_->border;
  border.clear();
  for (const Candidate& candidate : workspace_->candidates)
    if (bin_of(candidate.logit) == bin) border.push_back(candidate);
}

void Sampler::keep_top_k() {
  std::vector<Candidate>&candidates = workspace_->candidates, &ties = workspace_->border;
  const int64_t k = params_.top_k;
  if (k <= 0 || k >= static_cast<int64_t>(candidates.size())) return;
  std::array<int32_t, kBins> sizes{};
  for (const Candidate& candidate : candidates) ++sizes[bin_of(candidate.logit)];
  int64_t before = 0;  // candidates in bins above the k-th's
  int border = 0;
  while (before + sizes[border] < k) before += sizes[border++];
  take_border(border);
  const auto kth = ties.begin() + (k - before - 1);
  std::nth_element(ties.begin(), kth, ties.end(),
                   [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  const float least = kth->logit;
  std::erase_if(candidates, [&](const Candidate& c) { return c.logit < least; });
}

void Sampler::keep_top_p() {
  std::vector<Candidate>&candidates = workspace_->candidates, &ties = workspace_->border;
  if (params_.top_p >= 1) return;
  std::array<double, kBins> masses{};
  for (const Candidate& candidate : candidates) masses[bin_of(candidate.logit)] += candidate.weight;
  double total = 0;
  for (const double mass : masses) total += mass;
  const double wanted = params_.top_p * total;
  double before = 0;
  int border = 0;
  // Never beyond the last bin that has candidates, whatever rounding makes of the sums.
  int last_bin = kBins - 1;
  while (masses[last_bin] == 0) --last_bin;
  while (border < last_bin && before + masses[border] < wanted) before += masses[border++];
  take_border(border);
  const auto more_probable = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  std::sort(ties.begin(), ties.end(), more_probable);
  size_t last = 0;  // the last that is kept
  before += ties[0].weight;
  while (before < wanted && last + 1 < ties.size()) before += ties[++last].weight;
  const Candidate least = ties[last];
  std::erase_if(candidates, [&](const Candidate& c) { return more_probable(least, c); });
}

void Sampler::keep_min_p() {
  if (params_.min_p <= 0) return;
  // Weights are relative to the largest, which is 1.
  std::erase_if(workspace_->candidates,
                [&](const Candidate& c) { return c.weight < params_.min_p; });
}

int32_t Sampler::draw() {
  const std::vector<Candidate>& candidates = workspace_->candidates;
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.weight;
  const double target = uniform(random_state_) * total;
  double sum = 0;
  for (const Candidate& candidate : candidates) {
    sum += candidate.weight;
    if (target < sum) return candidate.token;
  }
  return candidates.back().token;  // unreachable but for rounding
}

SampledToken Sampler::sample(std::span<float> logits, std::span<const int32_t> prompt,
                             std::span<const int32_t> output, SamplerWorkspace& workspace) {
  workspace_ = &workspace;
  if (static_cast<int64_t>(logits.size()) != vocab_size_)
    throw Error(ErrorKind::kInvalidArgument, "sampling: {} logits for a vocabulary of {} tokens",
                logits.size(), vocab_size_);
  const bool with_logprobs = params_.logprobs >= 0;
  double total = 0;
  if (with_logprobs) {
    total = log_sum_exp(logits, params_.logprobs, workspace);
    workspace.unchanged.assign(logits.begin(), logits.end());
  }
  apply_penalties(logits, prompt, output);
  for (const auto& [token, bias] : params_.logit_bias) logits[token] += bias;
  const float largest = largest_of(logits);
  if (largest == -kInfinity)
    throw Error(
        ErrorKind::kInvalidData,
        "sampling: every logit is NaN or -inf; the model's weights or activations are damaged");
  SampledToken result{};
  if (params_.greedy()) {
    result.token =
        static_cast<int32_t>(std::find(logits.begin(), logits.end(), largest) - logits.begin());
  } else {
    collect(logits, largest);
    keep_top_k();
    keep_top_p();
    keep_min_p();
    result.token = draw();
  }
  if (with_logprobs) {
    result.logprob = static_cast<float>(workspace.unchanged[result.token] - total);
    result.top = workspace.top;
  }
  return result;
}

}  // namespace whit
