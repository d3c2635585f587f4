// The arithmetic of drawing a token from logits (runtime/sampler.h has the rule), one for the host
// and for kernels: every sum is of integers, so that any order of it draws the same token.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace whit {

// What a request does to the logit of one token: repetition penalty, then the frequency and
// presence penalties together, then a bias.
struct LogitChange {
  int32_t token;
  float repetition = 1, penalty = 0, bias = 0;

  constexpr float operator()(float logit) const {
    logit = logit > 0 ? logit / repetition : logit * repetition;
    return logit - penalty + bias;
  }
};

// How a token is drawn from a row of logits.
struct RowDraw {
  float temperature = 0;  // 0: the likeliest, the lowest of equals
  int64_t top_k = 0;      // ≤ 0: off
  float top_p = 1, min_p = 0;
  uint64_t random = 0;
  std::vector<LogitChange> changes;  // each token once
  std::vector<uint64_t> allowed;  // ⌈V / 64⌉ words of bits, the lowest token first; empty: all
};

// e^x for x ≤ 0 with a relative error below 4e-7; 0 below −87 and for NaN. Only products and sums,
// so the same everywhere, and a loop over it is vectorised.
constexpr float exp_of_nonpositive(float x) {
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

// A probability relative to the largest, in units of 2⁻⁴⁴: a million of them have a sum. Below one
// unit a token is never drawn.
constexpr uint64_t sampling_mass(float weight) { return static_cast<uint64_t>(weight * 0x1p44f); }

// Borders of top-k and top-p are found by bins of this many per unit of the scaled logit, 32 units
// in all.
inline constexpr int kSamplingBins = 2048;
constexpr int sampling_bin(float scaled) {
  const float distance = -scaled * 64.0f;
  return distance < kSamplingBins - 1 ? static_cast<int>(distance) : kSamplingBins - 1;
}

// Whether top-p wants more than tokens of this mass.
constexpr bool below_top_p(uint64_t mass, float top_p, uint64_t total) {
  return static_cast<double>(mass) < static_cast<double>(top_p) * static_cast<double>(total);
}

}  // namespace whit
