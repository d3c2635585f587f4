// What the tests of small operations share.
#pragma once

#include <random>
#include <string_view>
#include <vector>

#include "kernels/cpu/table.h"

namespace whit::cpu {

inline std::string_view isa_name(Isa isa) { return name(isa); }

// Asked of the CPU itself, so that these tests do not lean on the dispatch that other tests cover;
// but tiles must be asked for, which is the dispatch's.
inline bool cpu_has(Isa isa) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
                      __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::kAmx) return detected_isa() == Isa::kAmx;
  return isa == Isa::kPortable || (isa == Isa::kAvx2 ? avx2 : avx512);
}

inline std::vector<float> normal(std::mt19937& random, int64_t n, float deviation) {
  std::normal_distribution<float> distribution(0.0f, deviation);
  std::vector<float> result(n);
  for (float& value : result) value = distribution(random);
  return result;
}

// The workers' shares one after the other: what they write must not overlap or depend on order.
template <typename Body>
void on_workers(int count, const Body& body) {
  for (int index = count - 1; index >= 0; --index) body(Worker{index, count});
}

}  // namespace whit::cpu
