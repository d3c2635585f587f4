// Whether calibration data says enough about the inputs it is to describe.
//
// How many tokens stand behind the mean magnitude of a channel: Kish's effective sample size,
// (Σ|x|)² / Σx² = n · mean(|x|)² / mean(x²). It is n for a constant, 2/π · n for a normal variable,
// and k for a channel that k tokens alone excite; the relative error of the mean is about
// √(1/effective − 1/n).
#pragma once

#include <string>
#include <vector>

#include "calibrate/observer.h"

namespace whit {

// Below this many the mean of a channel is uncertain by more than a sixth.
inline constexpr double kFewEffectiveTokens = 32;

// Of the search split of one value's finished statistics.
struct Coverage {
  std::string name;  // of the first linear that reads the value
  int64_t channels = 0;
  int64_t few = 0;          // channels below kFewEffectiveTokens, dead ones included
  int64_t dead = 0;         // channels that were zero for every token
  double least = 0;         // effective tokens of the worst channel that is not dead
  int64_t worst = -1;       // that channel
  int64_t gram_tokens = 0;  // fewer than channels: the Gram matrix is singular
};
Coverage coverage_of(const InputStats& stats, std::string name);

// What a user should know; empty where all is well.
std::vector<std::string> coverage_warnings(const std::vector<Coverage>& all);

// Name of the first linear that reads `value`.
std::string reader_of(const Graph& graph, ValueId value);

}  // namespace whit
