#include "ops/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace whit::reference {
namespace {

uint16_t clamped_f16(float value) {
  constexpr float kLargest = 65504.0f;
  return f32_to_f16(value < -kLargest ? -kLargest : value > kLargest ? kLargest : value);
}

float clamped(float x) { return x < -65504.0f ? -65504.0f : x > 65504.0f ? 65504.0f : x; }

}  // namespace

float decoded(const KvCacheView& cache, Part part, int64_t page, int64_t head, int64_t offset,
              int64_t d) {
  const int64_t bits = kv_bits(cache.type), dh = cache.head_dim;
  const int64_t token = offset % kKvBlockTokens;
  const uint8_t* block = kv_block(cache, part, page, head, offset);
  if (cache.type == KvType::kBF16)
    return kv_from_bf16(reinterpret_cast<const uint16_t*>(
        block)[part == Part::kKeys ? bf16_key_at(token, d, dh) : bf16_value_at(token, d)]);
  const bool by_channel = part == Part::kKeys && cache.key_layout == KeyLayout::kChannel;
  const KvPlace place = part == Part::kKeys ? key_place(token, d, dh) : value_place(token, d, dh);
  if (bits == 16)
    return reinterpret_cast<const float*>(block + kv_code_bytes(bits, dh))[token] *
           static_cast<float>(
               reinterpret_cast<const int16_t*>(block)[place.unit * 32 + place.lane]);
  const int64_t pairs = by_channel ? padded_head_dim(dh) : kKvBlockTokens;
  const auto* scales = reinterpret_cast<const uint16_t*>(block + kv_code_bytes(bits, dh));
  const int64_t pair = by_channel ? d : token;
  return f16_to_f32(scales[pair]) * static_cast<float>(kv_code(block, bits, place)) +
         f16_to_f32(scales[pairs + pair]);
}

float exact(const KvCacheView& cache, const BatchView& batch, Part part, const float* rows,
            int64_t stride, int64_t b, int64_t position, int64_t head, int64_t d) {
  const int64_t begin = batch.query_start[b], end = batch.query_start[b + 1];
  const int64_t first = batch.context_len[b] - (end - begin);
  if (position >= first) {
    const float x = rows[(begin + position - first) * stride + head * cache.head_dim + d];
    return kv_has_tails(cache.type, cache.key_layout) ? f16_to_f32(clamped_f16(x)) : clamped(x);
  }
  const uint16_t* tails = part == Part::kKeys ? cache.k_tails : cache.v_tails;
  return f16_to_f32(tails[tail_offset(cache, batch.tails[b], head, position) + d]);
}

namespace {

// Chooses scale and minimum for `count` numbers x(i) and calls put(i, code). NaN becomes code 0.
struct ScaleAndMinimum {
  uint16_t scale, minimum;
};
template <typename X, typename Put>
ScaleAndMinimum encode(int64_t count, int64_t bits, const X& x, const Put& put) {
  const float levels = bits == 8 ? 255.0f : 15.0f;
  float low = std::numeric_limits<float>::infinity(), high = -low;
  for (int64_t i = 0; i < count; ++i) {
    low = x(i) < low ? x(i) : low;
    high = x(i) > high ? x(i) : high;
  }
  const ScaleAndMinimum result = {clamped_f16((high - low) / levels),
                                  clamped_f16(low + 0.0f)};  // +0, also of −0
  const float scale = f16_to_f32(result.scale), minimum = f16_to_f32(result.minimum);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float code = (x(i) - minimum) * inverse;
    put(i, static_cast<uint32_t>(std::nearbyint(!(code > 0)     ? 0.0f
                                                : code > levels ? levels
                                                                : code)));
  }
  return result;
}

template <typename X>
float norm(int64_t count, const X& x) {
  float sums[16] = {};
  for (int64_t i = 0; i < count; ++i) sums[i % 16] += x(i) * x(i);
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  return std::sqrt(sums[0]);
}

// Chooses the scale of `count` numbers x(i) in codes of 16 bits and calls put(i, code).
template <typename X, typename Put>
float encode_words(int64_t count, Part part, const X& x, const Put& put) {
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(x(i)));
  const float scale = part == Part::kValues
                          ? largest / kLargestValueCode
                          : std::max(largest / kLargestKeyCode, norm(count, x) / kKeyCodeNorm);
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    const float code = x(i) * inverse;
    put(i, static_cast<int16_t>(std::isnan(code) ? 0.0f : std::nearbyint(code)));
  }
  return scale;
}

// Encodes tokens [from, to) of sequence b, all in one block.
void write_block(const KvWriteArgs& args, int64_t b, int64_t from, int64_t to, int64_t head) {
  const KvCacheView& cache = args.cache;
  const int64_t bits = kv_bits(cache.type), dh = cache.head_dim;
  const int64_t page = args.batch.block_table[b * args.batch.max_blocks + from / cache.page_tokens];
  const int64_t offset = from % cache.page_tokens;
  for (const Part part : {Part::kKeys, Part::kValues}) {
    const bool keys = part == Part::kKeys;
    uint8_t* block = kv_block(cache, part, page, head, offset);
    auto* scales = reinterpret_cast<uint16_t*>(block + kv_code_bytes(bits, dh));
    const auto x = [&](int64_t token, int64_t d) {
      return exact(cache, args.batch, part, keys ? args.k : args.v,
                   keys ? args.k_stride : args.v_stride, b, from + token, head, d);
    };
    if (cache.type == KvType::kBF16) {
      if (!keys && from % kKvBlockTokens == 0) std::memset(block, 0, bf16_block_bytes(dh));
      for (int64_t token = from; token < to; ++token)
        for (int64_t d = 0; d < bf16_head_dim(dh); ++d) {
          const int64_t at = token % kKvBlockTokens;
          reinterpret_cast<uint16_t*>(block)[keys ? bf16_key_at(at, d, dh) : bf16_value_at(at, d)] =
              d < dh ? kv_bf16(x(token - from, d)) : 0;
        }
      continue;
    }
    if (keys && cache.key_layout == KeyLayout::kChannel) {
      const int64_t channels = padded_head_dim(dh);
      for (int64_t d = 0; d < channels; ++d) {
        const ScaleAndMinimum pair =
            d >= dh ? ScaleAndMinimum{0, 0}
                    : encode(
                          kKvBlockTokens, bits, [&](int64_t token) { return x(token, d); },
                          [&](int64_t token, uint32_t code) {
                            set_kv_code(block, bits, key_place(token, d, dh), code);
                          });
        scales[d] = pair.scale;
        scales[channels + d] = pair.minimum;
      }
      continue;
    }
    for (int64_t token = 0; token < to - from; ++token) {
      const int64_t at = from % kKvBlockTokens + token;
      if (bits == 16) {
        reinterpret_cast<float*>(scales)[at] = encode_words(
            dh, part, [&](int64_t d) { return x(token, d); },
            [&](int64_t d, int16_t code) {
              const KvPlace place = keys ? key_place(at, d, dh) : value_place(at, d, dh);
              reinterpret_cast<int16_t*>(block)[place.unit * 32 + place.lane] = code;
            });
        continue;
      }
      const ScaleAndMinimum pair = encode(
          dh, bits, [&](int64_t d) { return x(token, d); },
          [&](int64_t d, uint32_t code) {
            set_kv_code(block, bits, keys ? key_place(at, d, dh) : value_place(at, d, dh), code);
          });
      scales[at] = pair.scale;
      scales[kKvBlockTokens + at] = pair.minimum;
    }
  }
}

}  // namespace

void kv_write_blocks(const KvWriteArgs& args, int64_t head_begin, int64_t head_end) {
  const bool tails = kv_has_tails(args.cache.type, args.cache.key_layout);
  for (int64_t b = 0; b < args.batch.b; ++b) {
    const int64_t last = args.batch.context_len[b];
    const int64_t first = last - (args.batch.query_start[b + 1] - args.batch.query_start[b]);
    for (int64_t start = first / kKvBlockTokens * kKvBlockTokens; start < last;
         start += kKvBlockTokens) {
      const int64_t end = std::min(last, start + kKvBlockTokens);
      if (tails && end - start < kKvBlockTokens) continue;
      for (int64_t head = head_begin; head < head_end; ++head)
        write_block(args, b, tails ? start : std::max(start, first), end, head);
    }
  }
}

namespace {

// Row t of sequence b at `position` with one head.
void attend(const AttentionArgs& args, int64_t b, int64_t t, int64_t position, int64_t head) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, kv_head = head / (args.heads / cache.kv_heads);
  const int64_t first =
      args.sliding_window > 0 ? std::max<int64_t>(0, position - args.sliding_window + 1) : 0;
  const float* q = args.q + t * args.q_stride + head * dh;
  const int32_t* pages = args.batch.block_table + b * args.batch.max_blocks;
  const int64_t own_block = kv_has_tails(cache.type, cache.key_layout)
                                ? position / kKvBlockTokens * kKvBlockTokens
                                : position + 1;
  const auto key = [&](int64_t s, int64_t d) {
    const int64_t page = pages[s / cache.page_tokens], offset = s % cache.page_tokens;
    if (!has_blocks(cache.type))
      return static_cast<const float*>(cache.k)[key_offset(cache, page, kv_head, offset, d)];
    if (s < own_block) return decoded(cache, Part::kKeys, page, kv_head, offset, d);
    return exact(cache, args.batch, Part::kKeys, args.k, args.k_stride, b, s, kv_head, d);
  };
  const auto value = [&](int64_t s, int64_t d) {
    const int64_t page = pages[s / cache.page_tokens], offset = s % cache.page_tokens;
    if (!has_blocks(cache.type))
      return static_cast<const float*>(cache.v)[value_offset(cache, page, kv_head, offset, d)];
    if (s < own_block) return decoded(cache, Part::kValues, page, kv_head, offset, d);
    return exact(cache, args.batch, Part::kValues, args.v, args.v_stride, b, s, kv_head, d);
  };

  std::vector<double> scores(position + 1 - first), out(dh);
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t s = first; s <= position; ++s) {
    double dot = 0;
    for (int64_t d = 0; d < dh; ++d) dot += static_cast<double>(q[d]) * key(s, d);
    scores[s - first] = dot * args.scale;
    largest = std::max(largest, scores[s - first]);
  }
  for (int64_t s = first; s <= position; ++s) {
    const double p = std::exp(scores[s - first] - largest);
    sum += p;
    for (int64_t d = 0; d < dh; ++d) out[d] += p * value(s, d);
  }
  for (int64_t d = 0; d < dh; ++d)
    args.out[t * args.out_stride + head * dh + d] = static_cast<float>(out[d] / sum);
}

}  // namespace

void kv_write(const KvWriteArgs& args) {
  const KvCacheView& cache = args.cache;
  if (has_blocks(cache.type)) return kv_write_blocks(args, 0, cache.kv_heads);
  for (int64_t t = 0; t < args.batch.t; ++t) {
    const int64_t page = args.batch.slots[t] / cache.page_tokens;
    const int64_t offset = args.batch.slots[t] % cache.page_tokens;
    for (int64_t head = 0; head < cache.kv_heads; ++head)
      for (int64_t d = 0; d < cache.head_dim; ++d) {
        const int64_t from = head * cache.head_dim + d;
        static_cast<float*>(cache.k)[key_offset(cache, page, head, offset, d)] =
            args.k[t * args.k_stride + from];
        static_cast<float*>(cache.v)[value_offset(cache, page, head, offset, d)] =
            args.v[t * args.v_stride + from];
      }
  }
}

void kv_commit(const KvWriteArgs& args) {
  const KvCacheView& cache = args.cache;
  if (!kv_has_tails(cache.type, cache.key_layout)) return;
  for (int64_t b = 0; b < args.batch.b; ++b) {
    const int64_t begin = args.batch.query_start[b], end = args.batch.query_start[b + 1];
    for (int64_t t = std::max(begin, end - kKvTailTokens); t < end; ++t)
      for (int64_t head = 0; head < cache.kv_heads; ++head)
        for (int64_t d = 0; d < cache.head_dim; ++d) {
          const int64_t at =
              tail_offset(cache, args.batch.tails[b], head, args.batch.context_len[b] - (end - t)) +
              d;
          const int64_t from = head * cache.head_dim + d;
          cache.k_tails[at] = clamped_f16(args.k[t * args.k_stride + from]);
          cache.v_tails[at] = clamped_f16(args.v[t * args.v_stride + from]);
        }
  }
}

void attention(const AttentionArgs& args) {
  for (int64_t b = 0; b < args.batch.b; ++b) {
    const int64_t begin = args.batch.query_start[b], end = args.batch.query_start[b + 1];
    for (int64_t t = begin; t < end; ++t)
      for (int64_t head = 0; head < args.heads; ++head)
        attend(args, b, t, args.batch.context_len[b] - (end - t), head);
  }
}

}  // namespace whit::reference
