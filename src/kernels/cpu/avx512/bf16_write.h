// Writing keys and values of bf16 caches: the places of small_ops_attention.h's write_bf16_tokens,
// whole vectors at a time. For this folder's sources and AMX's.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/small_ops_attention.h"

namespace whit::cpu {
namespace {

// As kv_bf16 (the instruction makes subnormal numbers zero), in the low half of each of 16 words.
inline __m512i bf16_words(__m512 x) {
  x = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
  x = _mm512_min_ps(_mm512_set1_ps(65504.0f), _mm512_max_ps(_mm512_set1_ps(-65504.0f), x));
  __m256i bits;  // by hand: g++ 12's __m256bh converts to nothing
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(x));
  return _mm512_cvtepu16_epi32(bits);
}
inline __m512 first_numbers(const float* p, int64_t n) {
  if (n >= 16) return _mm512_loadu_ps(p);
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(n <= 0 ? 0 : (1u << n) - 1), p);
}
// 16 words of two numbers: channels d … d + 31 of a row of dh, zero beyond.
inline __m512i channel_pairs(const float* row, int64_t d, int64_t dh) {
  const __m512i low = bf16_words(first_numbers(row + d, dh - d));
  const __m512i high = bf16_words(first_numbers(row + d + 16, dh - d - 16));
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)),
                            _mm512_cvtepi32_epi16(high), 1);
}

// rows[i][j] becomes rows[j][i].
inline void transpose_words(__m512i (&rows)[16]) {
  __m512i a[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // rows[4g + c]: columns c, 4 + c, 8 + c, 12 + c of rows 4g … 4g + 3.
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512i even = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(rows[c], rows[4 + c], 0xdd);
    const __m512i even2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0x88);
    const __m512i odd2 = _mm512_shuffle_i32x4(rows[8 + c], rows[12 + c], 0xdd);
    a[c] = _mm512_shuffle_i32x4(even, even2, 0x88);
    a[8 + c] = _mm512_shuffle_i32x4(even, even2, 0xdd);
    a[4 + c] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    a[12 + c] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = a[i];
}

// Tokens [from, to), all in one block.
inline void write_bf16_block(const KvWriteArgs& args, int64_t b, int64_t from, int64_t to,
                             int64_t head) {
  const int64_t dh = args.cache.head_dim, padded = bf16_head_dim(dh);
  const Bf16Block block = bf16_block_of(args.cache, args.batch, b, from, head);
  auto* k = reinterpret_cast<uint32_t*>(block.k);
  uint16_t* v = block.v;
  const int64_t first_row = args.batch.query_start[b + 1] - args.batch.context_len[b];
  const auto key = [&](int64_t t) { return args.k + (first_row + t) * args.k_stride + head * dh; };
  const auto value = [&](int64_t t) {
    return args.v + (first_row + t) * args.v_stride + head * dh;
  };
  for (int64_t t = from; t < to;) {
    const int64_t at = t % kKvBlockTokens;
    uint32_t* tile = k + at / kTileTokens * kTileTokens * (padded / 2) + at % kTileTokens;
    if (at % kTileTokens == 0 && t + kTileTokens <= to) {
      for (int64_t d = 0; d < padded; d += 32) {
        __m512i rows[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = channel_pairs(key(t + i), d, dh);
        transpose_words(rows);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(tile + (d / 2 + i) * kTileTokens, rows[i]);
      }
      t += kTileTokens;
      continue;
    }
    for (int64_t d = 0; d < padded; d += 32) {
      alignas(64) uint32_t words[16];
      _mm512_store_si512(words, channel_pairs(key(t), d, dh));
      for (int i = 0; i < 16; ++i) tile[(d / 2 + i) * kTileTokens] = words[i];
    }
    ++t;
  }
  if (from % kKvBlockTokens == 0 && to % kKvBlockTokens != 0)
    __builtin_memset(v, 0, bf16_block_bytes(dh));
  for (int64_t t = from; t < to;) {
    const int64_t at = t % kKvBlockTokens;
    const bool odd = at % 2 != 0, both = !odd && t + 1 < to;
    for (int64_t d = 0; d < padded; d += 16) {
      __m512i words = bf16_words(first_numbers(value(t) + d, dh - d));
      if (odd) words = _mm512_slli_epi32(words, 16);
      if (both)
        words = _mm512_or_si512(
            words, _mm512_slli_epi32(bf16_words(first_numbers(value(t + 1) + d, dh - d)), 16));
      const __mmask32 lanes = both ? 0xffffffffu : odd ? 0xaaaaaaaau : 0x55555555u;
      _mm512_mask_storeu_epi16(v + (d / 16 * 16 + at / 2) * 32, lanes, words);
    }
    t += both ? 2 : 1;
  }
}

inline void kv_write_bf16(const KvWriteArgs& args, const Worker& worker) {
  for_each_written_block(args, worker, [&](int64_t b, int64_t from, int64_t to, int64_t head) {
    write_bf16_block(args, b, from, to, head);
  });
}

}  // namespace
}  // namespace whit::cpu
