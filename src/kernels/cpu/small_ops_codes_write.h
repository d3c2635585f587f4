// Writing caches of codes over an ISA's vector type S (ops/kv_layout.h: the layout; codes, scales
// and minima equal ops/reference/attention bit for bit, but for NaN).
//
// A worker takes whole blocks of 32 tokens of one key/value head: codes of 4 bits share bytes.
#pragma once

#include "kernels/cpu/small_ops_vector.h"

namespace whit::cpu {
namespace {

constexpr int64_t kLargestCodedHead = 512;  // of the buffers below

// The numbers of one token as they are before its block is full.
template <typename S>
inline void load_exact(const KvCacheView& cache, const BatchView& batch, const float* rows,
                       int64_t stride, const uint16_t* tails, int64_t b, int64_t position,
                       int64_t head, float* out) {
  const int64_t dh = cache.head_dim;
  const int64_t begin = batch.query_start[b], end = batch.query_start[b + 1];
  const int64_t first = batch.context_len[b] - (end - begin);
  const bool rounded = kv_has_tails(cache.type, cache.key_layout);
  uint16_t halves[S::kLanes];
  if (position >= first) {
    const float* row = rows + (begin + position - first) * stride + head * dh;
    for_each_vector<S>(0, dh, [&](int64_t d, int64_t n) {
      typename S::V x = load<S>(row + d, n);
      if (rounded) {
        S::store_element(halves, x);
        x = S::load_element(halves);
      } else {
        x = S::min(S::set1(65504.0f), S::max(S::set1(-65504.0f), x));
      }
      S::store(out + d, x);
    });
    return;
  }
  const uint16_t* row =
      tails +
      ((batch.tails[b] * cache.kv_heads + head) * kKvTailTokens + position % kKvTailTokens) * dh;
  for_each_vector<S>(0, dh, [&](int64_t d, int64_t n) {
    std::memcpy(halves, row + d, n * sizeof(uint16_t));
    S::store(out + d, S::load_element(halves));
  });
}

// Codes of the dh numbers of a token; x has room for whole vectors.
template <typename S>
inline void encode_token(float* x, int64_t dh, float levels, uint8_t* codes, uint16_t* scale,
                         uint16_t* minimum) {
  using V = typename S::V;
  for (int64_t d = dh; d % S::kLanes != 0; ++d) x[d] = x[0];
  V low = S::set1(__builtin_inff()), high = S::set1(-__builtin_inff());
  for (int64_t d = 0; d < dh; d += S::kLanes) {
    low = S::min(S::load(x + d), low);
    high = S::max(S::load(x + d), high);
  }
  const float lowest = 0.0f - S::reduce_max(S::sub(S::zero(), low));
  const float range = (S::reduce_max(high) - lowest) / levels;
  *scale = f32_to_f16(range > 65504.0f ? 65504.0f : range);
  *minimum = f32_to_f16(lowest);
  const float step = f16_to_f32(*scale);
  const V inverse = S::set1(step > 0 ? 1.0f / step : 0.0f), offset = S::set1(f16_to_f32(*minimum));
  for (int64_t d = 0; d < dh; d += S::kLanes) {
    const V code = S::mul(S::sub(S::load(x + d), offset), inverse);
    int32_t lanes[S::kLanes];
    S::store_int(lanes, S::to_int(S::min(S::max(code, S::zero()), S::set1(levels))));
    for (int64_t i = 0; i < S::kLanes && d + i < dh; ++i)
      codes[d + i] = static_cast<uint8_t>(lanes[i]);
  }
}

// ‖x‖ of dh numbers with zeros up to a multiple of 16, summed in the reference's order.
template <typename S>
inline float norm(const float* x, int64_t dh) {
  constexpr int kVectors = 16 / S::kLanes;
  typename S::V sums[kVectors];
  for (int i = 0; i < kVectors; ++i) sums[i] = S::zero();
  for (int64_t d = 0; d < dh; d += 16)
    for (int i = 0; i < kVectors; ++i) {
      const typename S::V v = S::load(x + d + i * S::kLanes);
      sums[i] = S::add(sums[i], S::mul(v, v));
    }
  for (int i = 1; i < kVectors; ++i) sums[0] = S::add(sums[0], sums[i]);
  return __builtin_sqrtf(S::reduce_add(sums[0]));
}

// Codes of 16 bits of a token's dh numbers, and their scale; x has room up to a multiple of 16,
// codes for whole store_words.
template <typename S>
inline float encode_words(float* x, int64_t dh, bool keys, int16_t* codes) {
  for (int64_t d = dh; d % 16 != 0; ++d) x[d] = 0.0f;
  typename S::I largest = S::zero_int();
  for (int64_t d = 0; d < dh; d += S::kLanes) largest = S::max_magnitude(largest, S::load(x + d));
  const float magnitude = S::reduce_max_magnitude(largest);
  float scale = magnitude / (keys ? kLargestKeyCode : kLargestValueCode);
  if (keys) {
    const float by_norm = norm<S>(x, dh) / kKeyCodeNorm;
    if (by_norm > scale) scale = by_norm;
  }
  const typename S::V inverse = S::set1(scale > 0 ? 1.0f / scale : 0.0f);
  for (int64_t d = 0; d < dh; d += S::kWordVectors * S::kLanes) {
    typename S::I vectors[S::kWordVectors];
    for (int i = 0; i < S::kWordVectors; ++i)
      vectors[i] = S::to_int(S::mul(S::load(x + d + i * S::kLanes), inverse));
    S::store_words(codes + d, vectors);
  }
  return scale;
}

// Codes of 32 tokens [32][stride] of S::kLanes channels.
template <typename S>
inline void encode_channels(const float* x, int64_t stride, float levels, uint8_t* codes,
                            uint16_t* scales, uint16_t* minima) {
  using V = typename S::V;
  V low = S::set1(__builtin_inff()), high = S::set1(-__builtin_inff());
  for (int64_t t = 0; t < kKvBlockTokens; ++t) {
    low = S::min(S::load(x + t * stride), low);
    high = S::max(S::load(x + t * stride), high);
  }
  S::store_element(scales, S::div(S::sub(high, low), S::set1(levels)));
  S::store_element(minima, S::add(low, S::zero()));
  const V step = S::load_element(scales), offset = S::load_element(minima);
  const V inverse = S::zero_where_zero(S::div(S::set1(1.0f), step), step);
  for (int64_t t = 0; t < kKvBlockTokens; ++t) {
    const V code = S::mul(S::sub(S::load(x + t * stride), offset), inverse);
    int32_t lanes[S::kLanes];
    S::store_int(lanes, S::to_int(S::min(S::max(code, S::zero()), S::set1(levels))));
    for (int64_t i = 0; i < S::kLanes; ++i) codes[t * stride + i] = static_cast<uint8_t>(lanes[i]);
  }
}

// One token's codes of 8 or 16 bits into a block.
template <typename T>
inline void scatter_key(const T* codes, int64_t dh, int64_t token, T* block) {
  T* to = block + token / 16 * 16 * padded_head_dim(dh) + token % 16 * 2;
  for (int64_t d = 0; d < dh; ++d) to[d / 2 * 32 + d % 2] = codes[d];
}
template <typename T>
inline void scatter_value(const T* codes, int64_t dh, int64_t token, T* block) {
  T* to = block + token / 16 * 16 * padded_head_dim(dh) + token % 16 / 2 * 32 + token % 2;
  for (int64_t d = 0; d < dh; ++d) to[d / 16 * 256 + d % 16 * 2] = codes[d];
}

// The same of words, of which there are a multiple of 16 to read, two at a time: two channels of a
// key's, dh being even, or two tokens of a value's.
inline void scatter_key_pairs(const int16_t* codes, int64_t dh, int64_t token, int16_t* block) {
  int16_t* to = block + token / 16 * 16 * padded_head_dim(dh) + token % 16 * 2;
  for (int64_t d = 0; d < dh; d += 2) std::memcpy(to + d / 2 * 32, codes + d, 2 * sizeof(int16_t));
}
inline void scatter_value_pair(const int16_t* even, const int16_t* odd, int64_t dh, int64_t token,
                               int16_t* block) {
  int16_t* to = block + token / 16 * 16 * padded_head_dim(dh) + token % 16 / 2 * 32;
  for (int64_t d = 0; d < dh; d += 16) {
    int16_t pairs[32];
    for (int64_t i = 0; i < 16; ++i) {
      pairs[2 * i] = even[d + i];
      pairs[2 * i + 1] = odd[d + i];
    }
    if (dh - d >= 16)
      std::memcpy(to + d / 16 * 256, pairs, sizeof pairs);
    else
      std::memcpy(to + d / 16 * 256, pairs, 2 * (dh - d) * sizeof(int16_t));
  }
}

// 32 tokens' codes [32][stride], of 4 bits, into a block; stride is padded_head_dim.
inline void pack_nibbles(const uint8_t* codes, int64_t stride, bool keys, uint8_t* block) {
  // Neighbours in a word are two channels of a token (keys) or two tokens of a channel.
  const int64_t step = keys ? 2 : 2 * stride;
  uint16_t words[32];
  for (int64_t tile = 0; tile < 2; ++tile)
    for (int64_t group = 0; group < stride / 8; ++group) {
      const uint8_t* from =
          codes + tile * 16 * stride + (keys ? group * 8 : group / 2 * 16 + group % 2 * 8 * stride);
      for (int64_t lane = 0; lane < 32; ++lane) {
        const uint8_t* c =
            keys ? from + lane / 2 * stride + lane % 2 : from + lane / 2 + lane % 2 * stride;
        words[lane] =
            static_cast<uint16_t>(c[0] | c[step] << 4 | c[2 * step] << 8 | c[3 * step] << 12);
      }
      std::memcpy(block + (tile * (stride / 8) + group) * 64, words, 64);
    }
}

template <typename S>
void write_code_block(const KvWriteArgs& args, int64_t b, int64_t from, int64_t to, int64_t head) {
  const KvCacheView& cache = args.cache;
  const int64_t bits = kv_bits(cache.type), dh = cache.head_dim, padded = padded_head_dim(dh);
  const float levels = bits == 8 ? 255.0f : 15.0f;
  const int64_t page = args.batch.block_table[b * args.batch.max_blocks + from / cache.page_tokens];
  const int64_t index = from % cache.page_tokens / kKvBlockTokens;
  alignas(64) uint8_t codes[kKvBlockTokens * kLargestCodedHead];
  alignas(64) float x[kKvBlockTokens * kLargestCodedHead];
  if (padded != dh) std::memset(codes, 0, kKvBlockTokens * padded);
  for (const bool keys : {true, false}) {
    uint8_t* block =
        keys
            ? key_blocks_of(cache, page, head) + index * key_block_bytes(bits, cache.key_layout, dh)
            : value_blocks_of(cache, page, head) + index * value_block_bytes(bits, dh);
    auto* scales = reinterpret_cast<uint16_t*>(block + kv_code_bytes(bits, dh));
    const auto load_row = [&](int64_t position, float* row) {
      load_exact<S>(cache, args.batch, keys ? args.k : args.v, keys ? args.k_stride : args.v_stride,
                    keys ? cache.k_tails : cache.v_tails, b, position, head, row);
    };
    if (bits == 16) {
      alignas(64) int16_t words[2][kLargestCodedHead];
      auto* out = reinterpret_cast<int16_t*>(block);
      const auto encode = [&](int64_t t, int16_t* to_words) {
        load_row(t, x);
        reinterpret_cast<float*>(scales)[t % kKvBlockTokens] =
            encode_words<S>(x, dh, keys, to_words);
      };
      for (int64_t t = from; t < to; ++t) {
        const int64_t at = t % kKvBlockTokens;
        encode(t, words[0]);
        if (keys && dh % 2 == 0) {
          scatter_key_pairs(words[0], dh, at, out);
        } else if (keys) {
          scatter_key(words[0], dh, at, out);
        } else if (at % 2 == 0 && t + 1 < to) {
          encode(++t, words[1]);
          scatter_value_pair(words[0], words[1], dh, at, out);
        } else {
          scatter_value(words[0], dh, at, out);
        }
      }
      continue;
    }
    if (keys && cache.key_layout == KeyLayout::kChannel) {
      for (int64_t t = 0; t < kKvBlockTokens; ++t) {
        std::memset(x + t * padded + dh, 0, (padded - dh) * sizeof(float));
        load_row(from + t, x + t * padded);
        std::memset(x + t * padded + dh, 0, (padded - dh) * sizeof(float));
      }
      for (int64_t d = 0; d < padded; d += S::kLanes)
        encode_channels<S>(x + d, padded, levels, codes + d, scales + d, scales + padded + d);
    } else {
      for (int64_t t = from; t < to; ++t) {
        const int64_t at = t % kKvBlockTokens;
        load_row(t, x);
        encode_token<S>(x, dh, levels, codes + at * padded, scales + at,
                        scales + kKvBlockTokens + at);
      }
    }
    if (bits == 4) {
      pack_nibbles(codes, padded, keys, block);
      continue;
    }
    for (int64_t t = from; t < to; ++t) {
      const int64_t at = t % kKvBlockTokens;
      keys ? scatter_key(codes + at * padded, dh, at, block)
           : scatter_value(codes + at * padded, dh, at, block);
    }
  }
}

// Head sizes up to kLargestCodedHead.
template <typename S>
void kv_write_codes(const KvWriteArgs& args, const Worker& worker) {
  for_each_written_block(args, worker, [&](int64_t b, int64_t from, int64_t to, int64_t head) {
    write_code_block<S>(args, b, from, to, head);
  });
}

template <typename S>
void kv_commit_tails(const KvWriteArgs& args, const Worker& worker) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim;
  if (!kv_has_tails(cache.type, cache.key_layout)) return;
  const Range part = split(args.batch.b * cache.kv_heads, 1, worker);
  for (int64_t unit = part.begin; unit < part.end; ++unit) {
    const int64_t b = unit / cache.kv_heads, head = unit % cache.kv_heads;
    const int64_t begin = args.batch.query_start[b], end = args.batch.query_start[b + 1];
    for (int64_t t = end - begin > kKvTailTokens ? end - kKvTailTokens : begin; t < end; ++t) {
      const int64_t position = args.batch.context_len[b] - (end - t);
      const int64_t at = ((args.batch.tails[b] * cache.kv_heads + head) * kKvTailTokens +
                          position % kKvTailTokens) *
                         dh;
      uint16_t halves[S::kLanes];
      for_each_vector<S>(0, dh, [&](int64_t d, int64_t n) {
        S::store_element(halves, load<S>(args.k + t * args.k_stride + head * dh + d, n));
        std::memcpy(cache.k_tails + at + d, halves, n * sizeof(uint16_t));
        S::store_element(halves, load<S>(args.v + t * args.v_stride + head * dh + d, n));
        std::memcpy(cache.v_tails + at + d, halves, n * sizeof(uint16_t));
      });
    }
  }
}

}  // namespace
}  // namespace whit::cpu
