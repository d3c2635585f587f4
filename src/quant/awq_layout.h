// Where AutoAWQ's "gemm" layout keeps the eight columns of a 32-bit word: four bits i of word c are
// column 8c + kAwqOrder[i]. (AutoAWQ 0.2.9.)
#pragma once

#include <array>

namespace whit {

inline constexpr std::array<int, 8> kAwqOrder = {0, 2, 4, 6, 1, 3, 5, 7};

}  // namespace whit
