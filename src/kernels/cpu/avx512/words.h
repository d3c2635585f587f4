// What AVX-512's linears of int8 activations have in common: registers, the product, and how many
// rows pass by at a time.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/linear_layout.h"

namespace whit::cpu {
namespace {

constexpr int kLanes = 16, kVectors = kPanelRows / kLanes;
constexpr int kTileRows = 8;

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, __m512i value) { _mm512_storeu_si512(to, value); }

// acc += unsigned · signed bytes. As an intrinsic g++ 12 moves accumulators between registers and
// the stack.
inline void add_products(__m512i& acc, __m512i unsigned_bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// Rows of activations per block: they should stay in L2 while all panels pass by.
inline int64_t block_rows(int64_t k, int64_t m) {
  constexpr int64_t kBlockBytes = 512 << 10, kLeastBlockRows = 64, kMostBlockRows = 512;
  int64_t rows = kBlockBytes / k;
  rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
  rows -= rows % kTileRows;
  return rows < m ? rows : m;
}

}  // namespace
}  // namespace whit::cpu
