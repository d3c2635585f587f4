// The registers of AVX2's integer linears and how they are read and written.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

constexpr int kLanes = 8, kPanelVectors = kPanelRows / kLanes;
constexpr int kTileVectors = 2, kTileColumns = kTileVectors * kLanes;

inline __m256i load(const void* from) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline void store(void* to, __m256i value) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

}  // namespace
}  // namespace whit::cpu
