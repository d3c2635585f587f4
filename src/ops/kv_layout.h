// What a KV cache in host memory holds, and where in a block a code lies.
//
// f32 caches (layout: KvCacheView in ops/ops.h) hold numbers, all others blocks of 32 tokens of one
// key/value head.
//
// bf16: numbers, clamped to ±65504 and rounded to nearest, ties to even; NaN, and what is below the
// smallest normal number, becomes zero. They lose up to 2⁻⁹ of each number, and tiles multiply them
// (AMX: tdpbf16ps) as they lie in memory. Writing the first token of a block makes the values of
// the others zero: weights of tokens beyond the text are zero, and zero times what memory held
// before must be.
//
// f16: signed codes c of 16 bits with x ≈ scale · c, scale in f32, taken over the Dh numbers of a
// token. So that sums of 32 bits hold products of such codes,
//   keys    scale = max(max |x| / 32767, ‖x‖ / 65536): with queries of ‖u‖ ≤ 32500 that is enough
//           for any Dh up to 1024 (Cauchy; rounding adds √Dh / 2 to a norm)
//   values  scale = max |x| / 8191: with 64 weights that sum to 262100 or less
// which loses no more than f16 numbers would: those lose up to 2⁻¹² of each number, these 2⁻¹⁷ of a
// key's norm and 2⁻¹⁴ of a value's largest.
//
// Integer caches: unsigned codes c of 8 or 4 bits with x ≈ scale · c + minimum, scale and minimum
// in f16, taken
//   values         over the Dh numbers of a token
//   keys, kToken   over the Dh numbers of a token
//   keys, kChannel over the 32 tokens of a channel (KIVI: Liu et al., ICML 2024, §3.2: a few
//   channels of keys
//                  are large for every token, no channel of values is)
// Where a cache has tails (int4, and int8 with kChannel keys) a block's codes are written once its
// 32 tokens are known; until then, and for every query in that same block for ever, its tokens are
// read in f16: from the tail, or from the step that brings them. Which numbers a query sees so
// depends on its position alone, not on how the prompt was cut.
//
// Codes lie in units of 32, as dot instructions on pairs of int16 want them: lane 2i and 2i + 1 are
// the pair that int32 lane i of the sum adds up.
//   keys    a unit is two channels × 16 tokens, lane = token · 2 + channel % 2;
//           [2 tiles][Dh/2 units]
//   values  a unit is 16 channels × two tokens, lane = channel · 2 + token % 2;
//           [2 tiles][Dh/16][8 units]
//   16 and 8 bits  a unit is 32 numbers in order
//   4 bits         four units are 32 little-endian words of 16 bits: unit i is bits 4i … 4i + 3 of
//                  each
//   bf16           keys lie as codes of 16 bits do; values in [Dh/16][16 units], as one tile holds
//                  all pairs of a block's tokens
// Dh is rounded up to a multiple of 16; codes of the channels beyond are never written nor used. Of
// bf16 it is a multiple of 32, and the numbers beyond are zero.
// Behind the codes come the scales, then the minima: 32 of each, or Dh (zero beyond the real ones)
// for kChannel; of 16 bits 32 scales alone, in as many bytes; of bf16 nothing.
//
// For ISA folders too: everything here has internal linkage.
#pragma once

#include <cstdint>

namespace whit {

enum class KvType : uint8_t { kF32, kF16, kInt8, kInt4, kFp8, kBF16 };
enum class KeyLayout : uint8_t { kToken, kChannel };

namespace {

constexpr int64_t kKvBlockTokens = 32;
// Of codes of 16 bits, as above.
constexpr float kLargestKeyCode = 32767.0f, kKeyCodeNorm = 65536.0f, kLargestValueCode = 8191.0f;
// A tail keeps two blocks, so that a step whose last tokens turn out to be wrong guesses can be
// taken back across a block's end.
constexpr int64_t kKvTailTokens = 2 * kKvBlockTokens;

inline bool has_blocks(KvType type) { return type != KvType::kF32; }
inline bool has_codes(KvType type) { return has_blocks(type) && type != KvType::kBF16; }
// Those whose keys have a choice of layouts.
inline bool is_integer(KvType type) { return type == KvType::kInt8 || type == KvType::kInt4; }
// Of codes.
inline int64_t kv_bits(KvType type) {
  return type == KvType::kF16 ? 16 : type == KvType::kInt4 ? 4 : 8;
}
inline bool kv_has_tails(KvType type, KeyLayout keys) {
  return type == KvType::kInt4 || (type == KvType::kInt8 && keys == KeyLayout::kChannel);
}
inline int64_t padded_head_dim(int64_t dh) { return (dh + 15) / 16 * 16; }
// Bytes of a block's codes, keys or values, and of one tile of 16 tokens.
inline int64_t kv_tile_bytes(int64_t bits, int64_t dh) { return padded_head_dim(dh) * 2 * bits; }
inline int64_t kv_code_bytes(int64_t bits, int64_t dh) { return 2 * kv_tile_bytes(bits, dh); }
inline int64_t key_block_bytes(int64_t bits, KeyLayout keys, int64_t dh) {
  const int64_t pairs = keys == KeyLayout::kToken ? kKvBlockTokens : padded_head_dim(dh);
  return kv_code_bytes(bits, dh) + (pairs * 4 + 63) / 64 * 64;
}
inline int64_t value_block_bytes(int64_t bits, int64_t dh) {
  return kv_code_bytes(bits, dh) + kKvBlockTokens * 4;
}

// Of bf16: channels, and bytes of a block's keys or values.
inline int64_t bf16_head_dim(int64_t dh) { return (dh + 31) / 32 * 32; }
inline int64_t bf16_block_bytes(int64_t dh) { return kKvBlockTokens * bf16_head_dim(dh) * 2; }

// Of any cache of blocks.
inline int64_t key_block_bytes(KvType type, KeyLayout keys, int64_t dh) {
  return type == KvType::kBF16 ? bf16_block_bytes(dh) : key_block_bytes(kv_bits(type), keys, dh);
}
inline int64_t value_block_bytes(KvType type, int64_t dh) {
  return type == KvType::kBF16 ? bf16_block_bytes(dh) : value_block_bytes(kv_bits(type), dh);
}

// Unit and lane of one number.
struct KvPlace {
  int64_t unit, lane;
};
inline KvPlace key_place(int64_t token, int64_t d, int64_t dh) {
  return {token / 16 * (padded_head_dim(dh) / 2) + d / 2, token % 16 * 2 + d % 2};
}
inline KvPlace value_place(int64_t token, int64_t d, int64_t dh) {
  return {(token / 16 * (padded_head_dim(dh) / 16) + d / 16) * 8 + token % 16 / 2,
          d % 16 * 2 + token % 2};
}
// Of bf16: where in a block the number lies.
inline int64_t bf16_key_at(int64_t token, int64_t d, int64_t dh) {
  return (token / 16 * (bf16_head_dim(dh) / 2) + d / 2) * 32 + token % 16 * 2 + d % 2;
}
inline int64_t bf16_value_at(int64_t token, int64_t d) {
  return (d / 16 * 16 + token / 2) * 32 + d % 16 * 2 + token % 2;
}
inline uint16_t kv_bf16(float x) {
  if (!(x == x)) return 0;
  x = x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x;
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0) return static_cast<uint16_t>(bits >> 31 << 15);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline float kv_from_bf16(uint16_t number) {
  const uint32_t bits = static_cast<uint32_t>(number) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint32_t kv_code(const uint8_t* codes, int64_t bits, KvPlace place) {
  if (bits == 8) return codes[place.unit * 32 + place.lane];
  const uint8_t byte = codes[place.unit / 4 * 64 + place.lane * 2 + place.unit % 4 / 2];
  return place.unit % 2 == 0 ? byte & 15u : byte >> 4;
}
inline void set_kv_code(uint8_t* codes, int64_t bits, KvPlace place, uint32_t code) {
  if (bits == 8) {
    codes[place.unit * 32 + place.lane] = static_cast<uint8_t>(code);
    return;
  }
  uint8_t& byte = codes[place.unit / 4 * 64 + place.lane * 2 + place.unit % 4 / 2];
  byte = static_cast<uint8_t>(place.unit % 2 == 0 ? (byte & 0xf0u) | code
                                                  : (byte & 0x0fu) | code << 4);
}

}  // namespace
}  // namespace whit
