#include "runtime/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace whit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kMaxLogprobs = 20;
// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), figure 15
// with the constants of variant 13.
uint64_t split_mix(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
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

std::span<const LogitChange> Sampler::changes(std::span<const int32_t> prompt,
                                              std::span<const int32_t> output,
                                              SamplerWorkspace& workspace) const {
  std::vector<LogitChange>& changes = workspace.changes;
  changes.clear();
  const bool penalised = params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
                         params_.frequency_penalty != 0;
  if (!penalised && params_.logit_bias.empty()) return changes;
  std::vector<int32_t>& places = workspace.places;
  if (std::ssize(places) < vocab_size_) places.resize(vocab_size_);
  const auto change_of = [&](int32_t token) -> LogitChange& {
    if (places[token] == 0) {
      changes.push_back({token});
      places[token] = static_cast<int32_t>(changes.size());
    }
    return changes[places[token] - 1];
  };
  const auto known = [&](int32_t token) { return token >= 0 && token < vocab_size_; };
  if (penalised) {
    // Counts first.
    for (const int32_t token : output)
      if (known(token)) change_of(token).penalty += 1;
    for (LogitChange& change : changes)
      change.penalty = params_.frequency_penalty * change.penalty + params_.presence_penalty;
    if (params_.repetition_penalty != 1)
      for (const int32_t token : prompt)
        if (known(token)) change_of(token);
    for (LogitChange& change : changes) change.repetition = params_.repetition_penalty;
  }
  for (const auto& [token, bias] : params_.logit_bias) change_of(token).bias = bias;
  for (const LogitChange& change : changes) places[change.token] = 0;
  return changes;
}

RowDraw Sampler::next_draw(std::span<const int32_t> prompt, std::span<const int32_t> output,
                           SamplerWorkspace& workspace) const {
  const std::span<const LogitChange> changed = changes(prompt, output, workspace);
  uint64_t state = random_state_;  // which drawn() moves on
  return {.temperature = params_.greedy() ? 0.0f : params_.temperature,
          .top_k = params_.top_k,
          .top_p = params_.top_p,
          .min_p = params_.min_p,
          .random = split_mix(state),
          .changes = {changed.begin(), changed.end()},
          .allowed = {}};
}

void Sampler::drawn() {
  if (!params_.greedy()) split_mix(random_state_);
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
    if (sampling_mass(weights[token]) > 0)
      candidates.push_back({(logits[token] - largest) * inverse, weights[token], token});
}

void Sampler::take_border(int bin) {
  std::vector<Candidate>& border = workspace_->border;
  border.clear();
  for (const Candidate& candidate : workspace_->candidates)
    if (sampling_bin(candidate.logit) == bin) border.push_back(candidate);
}

void Sampler::keep_top_k() {
  std::vector<Candidate>&candidates = workspace_->candidates, &ties = workspace_->border;
  const int64_t k = params_.top_k;
  if (k <= 0 || k >= std::ssize(candidates)) return;
  std::array<int32_t, kSamplingBins> sizes{};
  for (const Candidate& candidate : candidates) ++sizes[sampling_bin(candidate.logit)];
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
  std::array<uint64_t, kSamplingBins> masses{};
  for (const Candidate& candidate : candidates)
    masses[sampling_bin(candidate.logit)] += sampling_mass(candidate.weight);
  uint64_t total = 0;
  for (const uint64_t mass : masses) total += mass;
  const auto wants_more = [&](uint64_t mass) { return below_top_p(mass, params_.top_p, total); };
  uint64_t before = 0;
  int border = 0;
  while (wants_more(before + masses[border])) before += masses[border++];
  take_border(border);
  const auto more_probable = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  std::sort(ties.begin(), ties.end(), more_probable);
  size_t last = 0;  // the last that is kept
  before += sampling_mass(ties[0].weight);
  while (wants_more(before)) before += sampling_mass(ties[++last].weight);
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
  uint64_t total = 0;
  for (const Candidate& candidate : candidates) total += sampling_mass(candidate.weight);
  const auto target =
      static_cast<uint64_t>(static_cast<unsigned __int128>(split_mix(random_state_)) * total >> 64);
  uint64_t sum = 0;
  size_t i = 0;
  while ((sum += sampling_mass(candidates[i].weight)) <= target) ++i;
  return candidates[i].token;
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
  for (const LogitChange& change : changes(prompt, output, workspace))
    logits[change.token] = change(logits[change.token]);
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
