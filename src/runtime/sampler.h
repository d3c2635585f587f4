// Chooses the next token from logits.
//
// The order is that of Hugging Face and vLLM:
//   1. repetition penalty   tokens of prompt and output: l > 0 → l / penalty, else l · penalty
//   (Keskar
//                           et al. 2019); then for tokens of the output alone
//                           l − frequency_penalty · count − presence_penalty (OpenAI's definition)
//   2. logit bias           l + bias
//   3. temperature          l / temperature; 0 (below 1e-5) takes the largest, the lowest id of
//   equals
//   4. top-k                tokens with l ≥ the k-th largest (equals of the k-th stay)
//   5. top-p                the fewest most probable tokens whose probabilities, normalised after
//                           top-k, reach p; of equals the lower ids
//   6. min-p                tokens with at least min_p times the largest probability
//   7. one draw from what is left, probabilities in units of 2⁻⁴⁴ of the largest
// A NaN logit counts as −∞; if any is +∞ the draw is uniform among those. The random numbers and
// the exponential are this file's own, so a seed gives the same tokens on every platform.
// Log-probabilities are those of the model: of the logits as they came.
//
// Cost: a few passes over the vocabulary and no sort of it; only the tokens around the top-k and
// top-p borders (a bin of 1/64 in log-probability) are sorted.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "ops/sampling.h"

namespace whit {

struct SamplerOptions {
  float temperature = 1.0f;         // ≥ 0
  int64_t top_k = 0;                // 0 or −1: off
  float top_p = 1.0f;               // (0, 1]
  float min_p = 0.0f;               // [0, 1]
  float repetition_penalty = 1.0f;  // > 0
  float presence_penalty = 0.0f;    // [−2, 2]
  float frequency_penalty = 0.0f;   // [−2, 2]
  uint64_t seed = 0;
  std::map<int32_t, float> logit_bias;  // token id → finite bias
  int logprobs = -1;  // −1: none; n ≥ 0: of the chosen token and the n most probable, n ≤ 20

  bool greedy() const { return temperature < 1e-5f; }
  // Whether the token is that of the largest logit, whatever came before, and nothing else is
  // asked.
  bool plain_argmax() const {
    return greedy() && repetition_penalty == 1.0f && presence_penalty == 0.0f &&
           frequency_penalty == 0.0f && logit_bias.empty() && logprobs < 0;
  }
  // Throws kInvalidArgument naming the field, its value and what is allowed.
  void validate(int64_t vocab_size) const;
};

struct TokenLogprob {
  int32_t token;
  float logprob;
};

struct SampledToken {
  int32_t token;
  float logprob = 0;                       // where asked for
  std::span<const TokenLogprob> top = {};  // most probable first; valid until the next sample()
};

// What sampling needs room for, about 40 bytes for each token of the vocabulary: many samplers may
// use one, one after the other. It grows on demand.
struct SamplerWorkspace {
  struct Candidate {
    float logit;   // scaled, minus the largest
    float weight;  // e^logit
    int32_t token;
  };

  std::vector<LogitChange> changes;
  std::vector<int32_t> places;        // of each token among the changes, + 1; zero between calls
  std::vector<float> weights;         // [vocab_size]
  std::vector<Candidate> candidates;  // in order of their ids
  std::vector<Candidate> border;      // those of one bin
  std::vector<float> unchanged;       // the logits as they came, for log-probabilities
  std::vector<TokenLogprob> top;
};

class Sampler {
 public:
  // Validates the parameters.
  Sampler(const SamplerOptions& params, int64_t vocab_size);

  // logits [vocab_size] are overwritten. Ids in prompt and output that are not in the vocabulary
  // are ignored. The result's `top` lies in the workspace. Throws kInvalidData when every logit is
  // NaN or −∞.
  SampledToken sample(std::span<float> logits, std::span<const int32_t> prompt,
                      std::span<const int32_t> output, SamplerWorkspace& workspace);
  // With a workspace of its own.
  SampledToken sample(std::span<float> logits, std::span<const int32_t> prompt,
                      std::span<const int32_t> output) {
    return sample(logits, prompt, output, own_workspace_);
  }

  // For whoever draws elsewhere, by the same rule to the same token: what the next draw needs, and
  // that it was made. Log-probabilities are not among it.
  RowDraw next_draw(std::span<const int32_t> prompt, std::span<const int32_t> output,
                    SamplerWorkspace& workspace) const;
  void drawn();

  const SamplerOptions& params() const { return params_; }

 private:
  using Candidate = SamplerWorkspace::Candidate;

  // What happens to the logits first, each token once; lies in the workspace.
  std::span<const LogitChange> changes(std::span<const int32_t> prompt,
                                       std::span<const int32_t> output,
                                       SamplerWorkspace& workspace) const;
  void collect(std::span<const float> logits, float largest);
  void take_border(int bin);
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();
  int32_t draw();

  SamplerOptions params_;
  int64_t vocab_size_;
  uint64_t random_state_;
  SamplerWorkspace own_workspace_;
  SamplerWorkspace* workspace_ = nullptr;  // during sample()
};

// log Σ e^logit, which a logit minus gives its log-probability; and in workspace.top the `count`
// most probable tokens.
double log_sum_exp(std::span<const float> logits, int count, SamplerWorkspace& workspace);

}  // namespace whit
