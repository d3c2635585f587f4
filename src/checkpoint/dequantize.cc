#include "checkpoint/dequantize.h"

#include <bit>
#include <cstring>

#include "base/error.h"

namespace whit {
namespace {

constexpr int kSuper = 256;  // elements of a K-quant's block

template <typename T>
T load(const uint8_t* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Branch-free, so that loops over it vectorise; subnormals go through a subtraction of normal
// numbers, which is exact and does not depend on the thread's flush-to-zero mode.
inline float half(uint16_t bits) {
  const uint32_t shifted = uint32_t{bits & 0x7fffu} << 13;
  const uint32_t exponent = shifted & (31u << 23);
  const uint32_t normal = shifted + (112u << 23);
  const uint32_t special = shifted + (224u << 23);
  const float tiny = std::bit_cast<float>((shifted & 0x007fffffu) + (113u << 23)) -
                     std::bit_cast<float>(113u << 23);
  const uint32_t magnitude = exponent == 0             ? std::bit_cast<uint32_t>(tiny)
                             : exponent == (31u << 23) ? special
                                                       : normal;
  return std::bit_cast<float>(magnitude | uint32_t{bits & 0x8000u} << 16);
}
inline float load_half(const uint8_t* from) { return half(load<uint16_t>(from)); }

void f32(const uint8_t* data, int64_t n, float* out) { std::memcpy(out, data, n * sizeof(float)); }
void f16(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = load_half(data + 2 * i);
}
void bf16(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load<uint16_t>(data + 2 * i));
}
void f64(const uint8_t* data, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(load<double>(data + 8 * i));
}

// d, 16 bytes: element j in the low nibble of byte j, element j + 16 in its high nibble.
void q4_0(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>((b[2 + j] & 15) - 8);
    out[j + 16] = d * static_cast<float>((b[2 + j] >> 4) - 8);
  }
}

void q4_1(const uint8_t* b, float* out) {
  const float d = load_half(b), m = load_half(b + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * static_cast<float>(b[4 + j] & 15) + m;
    out[j + 16] = d * static_cast<float>(b[4 + j] >> 4) + m;
  }
}

// As Q4, with the elements' fifth bits in a 32-bit word.
void q5_0(const uint8_t* b, float* out) {
  const float d = load_half(b);
  const auto high = load<uint32_t>(b + 2);
  for (int j = 0; j < 16; ++j) {
    const int low = (b[6 + j] & 15) | ((high >> j & 1) << 4);
    const int top = (b[6 + j] >> 4) | ((high >> (j + 16) & 1) << 4);
    out[j] = d * static_cast<float>(low - 16);
    out[j + 16] = d * static_cast<float>(top - 16);
  }
}

void q5_1(const uint8_t* b, float* out) {
  const float d = load_half(b), m = load_half(b + 2);
  const auto high = load<uint32_t>(b + 4);
  for (int j = 0; j < 16; ++j) {
    const int low = (b[8 + j] & 15) | ((high >> j & 1) << 4);
    const int top = (b[8 + j] >> 4) | ((high >> (j + 16) & 1) << 4);
    out[j] = d * static_cast<float>(low) + m;
    out[j + 16] = d * static_cast<float>(top) + m;
  }
}

void q8_0(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(static_cast<int8_t>(b[2 + j]));
}

// K-quants: a byte row of 32 holds elements l, l + 32, … at rising bit positions; 16 or 32 elements
// share a sub-scale.
void q2_k(const uint8_t* b, float* out) {
  const uint8_t* scales = b;
  const uint8_t* qs = b + 16;
  const float d = load_half(b + 80), dmin = load_half(b + 82);
  for (int sub = 0; sub < 16; ++sub) {
    const float scale = d * static_cast<float>(scales[sub] & 15);
    const float minimum = dmin * static_cast<float>(scales[sub] >> 4);
    const uint8_t* q = qs + sub / 8 * 32 + sub % 2 * 16;
    const int shift = sub % 8 / 2 * 2;
    for (int l = 0; l < 16; ++l)
      out[sub * 16 + l] = scale * static_cast<float>(q[l] >> shift & 3) - minimum;
  }
}

void q3_k(const uint8_t* b, float* out) {
  const uint8_t* mask = b;
  const uint8_t* qs = b + 32;
  const uint8_t* scales = b + 96;
  const float d = load_half(b + 108);
  for (int sub = 0; sub < 16; ++sub) {
    const int low = sub < 8 ? scales[sub] & 15 : scales[sub - 8] >> 4;
    const int high = scales[8 + sub % 4] >> (sub / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const uint8_t* q = qs + sub / 8 * 32 + sub % 2 * 16;
    const uint8_t* h = mask + sub % 2 * 16;
    const int shift = sub % 8 / 2 * 2, bit = sub / 2;
    for (int l = 0; l < 16; ++l) {
      const int value = (q[l] >> shift & 3) - 4 + ((h[l] >> bit & 1) << 2);
      out[sub * 16 + l] = scale * static_cast<float>(value);
    }
  }
}

// What the codes of a sub-block of Q4_K and Q5_K are multiplied with, and what is then subtracted:
// eight 6-bit pairs in 12 bytes behind the block's two factors.
struct ScaleMin {
  float scale, minimum;
};
ScaleMin scale_min(const uint8_t* b, int sub) {
  const float d = load_half(b), dmin = load_half(b + 2);
  const uint8_t* packed = b + 4;
  if (sub < 4)
    return {d * static_cast<float>(packed[sub] & 63),
            dmin * static_cast<float>(packed[sub + 4] & 63)};
  return {d * static_cast<float>((packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4),
          dmin * static_cast<float>((packed[sub + 4] >> 4) | (packed[sub] >> 6) << 4)};
}

void q4_k(const uint8_t* b, float* out) {
  const uint8_t* qs = b + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, minimum] = scale_min(b, sub);
    const uint8_t* q = qs + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int l = 0; l < 32; ++l)
      out[sub * 32 + l] = scale * static_cast<float>(q[l] >> shift & 15) - minimum;
  }
}

void q5_k(const uint8_t* b, float* out) {
  const uint8_t* high = b + 16;
  const uint8_t* qs = b + 48;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, minimum] = scale_min(b, sub);
    const uint8_t* q = qs + sub / 2 * 32;
    const int shift = sub % 2 * 4;
    for (int l = 0; l < 32; ++l) {
      const int value = (q[l] >> shift & 15) | (high[l] >> sub & 1) << 4;
      out[sub * 32 + l] = scale * static_cast<float>(value) - minimum;
    }
  }
}

void q6_k(const uint8_t* b, float* out) {
  const uint8_t* low = b;
  const uint8_t* high = b + 128;
  const uint8_t* scales = b + 192;
  const float d = load_half(b + 208);
  for (int sub = 0; sub < 16; ++sub) {
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[sub]));
    const int part = sub % 8;  // within the 128 elements that share 64 low and 32 high bytes
    const uint8_t* q = low + sub / 8 * 64 + part % 4 * 16;
    const uint8_t* h = high + sub / 8 * 32 + part % 2 * 16;
    const int shift = part / 4 * 4, high_shift = part / 2 * 2;
    for (int l = 0; l < 16; ++l) {
      const int value = (q[l] >> shift & 15) | (h[l] >> high_shift & 3) << 4;
      out[sub * 16 + l] = scale * static_cast<float>(value - 32);
    }
  }
}

// The 16 levels of ggml's non-linear 4-bit types.
constexpr float kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};

void iq4_nl(const uint8_t* b, float* out) {
  const float d = load_half(b);
  for (int j = 0; j < 16; ++j) {
    out[j] = d * kNonLinear[b[2 + j] & 15];
    out[j + 16] = d * kNonLinear[b[2 + j] >> 4];
  }
}

void iq4_xs(const uint8_t* b, float* out) {
  const float d = load_half(b);
  const auto scales_high = load<uint16_t>(b + 2);
  const uint8_t* scales_low = b + 4;
  for (int sub = 0; sub < 8; ++sub) {
    const int low = scales_low[sub / 2] >> (sub % 2 * 4) & 15;
    const int high = scales_high >> (2 * sub) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    const uint8_t* q = b + 8 + sub * 16;
    for (int j = 0; j < 16; ++j) {
      out[sub * 32 + j] = scale * kNonLinear[q[j] & 15];
      out[sub * 32 + j + 16] = scale * kNonLinear[q[j] >> 4];
    }
  }
}

template <int kElements, int kBytes, void (*kBlock)(const uint8_t*, float*)>
void blocks(const uint8_t* data, int64_t elements, float* out) {
  for (int64_t i = 0; i < elements / kElements; ++i) kBlock(data + i * kBytes, out + i * kElements);
}

}  // namespace

void dequantize(StorageType type, const uint8_t* data, int64_t elements, float* out) {
  switch (type) {
    case StorageType::kF32:
      return f32(data, elements, out);
    case StorageType::kF16:
      return f16(data, elements, out);
    case StorageType::kBF16:
      return bf16(data, elements, out);
    case StorageType::kF64:
      return f64(data, elements, out);
    case StorageType::kQ4_0:
      return blocks<32, 18, q4_0>(data, elements, out);
    case StorageType::kQ4_1:
      return blocks<32, 20, q4_1>(data, elements, out);
    case StorageType::kQ5_0:
      return blocks<32, 22, q5_0>(data, elements, out);
    case StorageType::kQ5_1:
      return blocks<32, 24, q5_1>(data, elements, out);
    case StorageType::kQ8_0:
      return blocks<32, 34, q8_0>(data, elements, out);
    case StorageType::kQ2_K:
      return blocks<kSuper, 84, q2_k>(data, elements, out);
    case StorageType::kQ3_K:
      return blocks<kSuper, 110, q3_k>(data, elements, out);
    case StorageType::kQ4_K:
      return blocks<kSuper, 144, q4_k>(data, elements, out);
    case StorageType::kQ5_K:
      return blocks<kSuper, 176, q5_k>(data, elements, out);
    case StorageType::kQ6_K:
      return blocks<kSuper, 210, q6_k>(data, elements, out);
    case StorageType::kIQ4_NL:
      return blocks<32, 18, iq4_nl>(data, elements, out);
    case StorageType::kIQ4_XS:
      return blocks<kSuper, 136, iq4_xs>(data, elements, out);
    default:
      throw Error(ErrorKind::kUnsupported, "elements of type {} are not weights by themselves",
                  name(type));
  }
}

int64_t find_non_finite(const float* values, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  constexpr int64_t kChunk =
      4096;  // the reduction vectorises; the search for the index runs only on a hit
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t end = begin + kChunk < count ? begin + kChunk : count;
    uint32_t bad = 0;
    for (int64_t i = begin; i < end; ++i)
      bad |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent ? 1u : 0u;
    if (bad == 0) continue;
    for (int64_t i = begin; i < end; ++i)
      if ((std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent) return i;
  }
  return -1;
}

}  // namespace whit
