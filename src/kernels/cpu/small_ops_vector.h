// Small operations over an ISA's vector type S (avx2/float_vector.h, avx512/float_vector.h), with
// internal linkage in each folder that includes them; no function here may be one that the linker
// could share with code built for another ISA, so nothing of std:: is called.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernels/cpu/small_ops.h"
#include "kernels/cpu/small_ops_attention.h"

namespace whit::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// 2^f on [−½, ½] as 1 + c1·f + … + c5·f⁵, weighted least squares iterated to the minimax fit of the
// relative error: 1.53 · 2⁻²⁴, with f32 rounding of the evaluation ≤ 2.7 · 2⁻²⁴. Exact at 0.
template <typename S>
inline typename S::V exp2_fraction(typename S::V f) {
  typename S::V p = S::set1(0x1.5bba14p-10f);
  p = S::fma(p, f, S::set1(0x1.3cea88p-7f));
  p = S::fma(p, f, S::set1(0x1.c6b752p-5f));
  p = S::fma(p, f, S::set1(0x1.ebf9bcp-3f));
  p = S::fma(p, f, S::set1(0x1.62e42ap-1f));
  return S::fma(p, f, S::set1(1.0f));
}

// 2^x for x ≤ 0; 0 from −127 on, NaN for NaN. Between −127 and −126 some subnormal number.
template <typename S>
inline typename S::V exp2_of_nonpositive(typename S::V x) {
  x = S::max(S::set1(-127.0f), x);
  const typename S::I n = S::to_int(x);
  return S::scale(exp2_fraction<S>(S::sub(x, S::to_float(n))), n);
}

// e^x; 0 below −87.3, 2^127 above 88, NaN for NaN.
template <typename S>
inline typename S::V exp(typename S::V x) {
  constexpr float kLog2eHigh = 0x1.715476p+0f, kLog2eLow = 0x1.4ae0cp-26f;
  x = S::min(S::set1(88.0f), x);
  const typename S::I n = S::to_int(S::mul(x, S::set1(kLog2eHigh)));
  typename S::V f = S::fma(x, S::set1(kLog2eHigh), S::sub(S::zero(), S::to_float(n)));
  f = S::fma(x, S::set1(kLog2eLow), f);
  return S::zero_below(S::scale(exp2_fraction<S>(f), n), x, -87.3f);
}

// body(i, n) for i = begin, begin + lanes …: n = lanes, fewer for the last.
template <typename S, typename Body>
inline void for_each_vector(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + S::kLanes <= end; i += S::kLanes) body(i, S::kLanes);
  if (i < end) body(i, end - i);
}
template <typename S>
inline typename S::V load(const float* p, int64_t n) {
  return n == S::kLanes ? S::load(p) : S::load_partial(p, n, 0.0f);
}
template <typename S>
inline void store(float* p, typename S::V v, int64_t n) {
  n == S::kLanes ? S::store(p, v) : S::store_partial(p, v, n);
}

// ---- int8 rows ----------------------------------------------------------------------------------

// value(i, n) gives elements i … i+n−1 of the row, zeros beyond; it is evaluated twice.
template <typename S, typename Value>
inline void quantize_row(const Value& value, int64_t k, const Int8Rows& out, int64_t row) {
  constexpr int64_t kStep = S::kLanes * S::kCodeVectors;
  const auto piece = [&](int64_t i) {
    return i + S::kLanes <= k ? value(i, int64_t{S::kLanes}) : value(i, i < k ? k - i : 0);
  };
  float scale = out.static_scale;
  if (!(scale > 0)) {
    typename S::I largest = S::zero_int();
    for (int64_t i = 0; i < k; i += S::kLanes) largest = S::max_magnitude(largest, piece(i));
    scale = S::reduce_max_magnitude(largest) / 127.0f;
  }
  const float inverse = scale >= FLT_MIN && scale <= FLT_MAX ? 1.0f / scale : 0.0f;
  if (scale < FLT_MIN) scale = 0.0f;
  if (out.scale != nullptr) out.scale[row] = scale;

  int8_t* codes = out.q + row * out.stride;
  const typename S::V multiplier = S::set1(inverse), low = S::set1(-127.0f), high = S::set1(127.0f);
  const bool sums = out.group_sums != nullptr;
  const int64_t group_size = sums ? out.group_size : k;
  const int64_t groups = sums ? (k + group_size - 1) / group_size : 1;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t end = least(k, (g + 1) * group_size);
    typename S::I sum = S::zero_int();
    for (int64_t i = g * group_size; i < end; i += kStep) {
      typename S::I vectors[S::kCodeVectors];
      for (int v = 0; v < S::kCodeVectors; ++v) {
        // The bound comes second, so that NaN becomes −127.
        const typename S::V scaled = S::mul(piece(i + v * S::kLanes), multiplier);
        vectors[v] = S::to_int(S::min(S::max(scaled, low), high));
        sum = S::add_int(sum, vectors[v]);
      }
      S::store_codes(codes + i, vectors);
    }
    if (sums) out.group_sums[row * groups + g] = S::reduce_add_int(sum);
  }
  std::memset(codes + k, 0, out.stride - k);
}

template <typename S>
inline void quantize_values(const float* x, int64_t k, const Int8Rows& out, int64_t row) {
  quantize_row<S>([x](int64_t i, int64_t n) { return load<S>(x + i, n); }, k, out, row);
}

template <typename S>
void quantize(const QuantizeArgs& args, const Worker& worker) {
  const Range rows = split(args.m, 1, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row)
    quantize_values<S>(args.x + row * args.x_stride, args.k, args.q, row);
}

// ---- norm ---------------------------------------------------------------------------------------

template <typename S>
inline float sum_of_squares(const float* x, int64_t n) {
  using V = typename S::V;
  V a = S::zero(), b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * S::kLanes <= n; i += 4 * S::kLanes) {
    const V v0 = S::load(x + i), v1 = S::load(x + i + S::kLanes);
    const V v2 = S::load(x + i + 2 * S::kLanes), v3 = S::load(x + i + 3 * S::kLanes);
    a = S::fma(v0, v0, a);
    b = S::fma(v1, v1, b);
    c = S::fma(v2, v2, c);
    d = S::fma(v3, v3, d);
  }
  for_each_vector<S>(i, n, [&](int64_t at, int64_t count) {
    const V v = load<S>(x + at, count);
    a = S::fma(v, v, a);
  });
  return S::reduce_add(S::add(S::add(a, b), S::add(c, d)));
}

template <typename S>
void rms_norm(const RmsNormArgs& args, const Worker& worker) {
  const Range rows = split(args.m, 1, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x + row * args.x_stride;
    const float mean = sum_of_squares<S>(x, args.d) / static_cast<float>(args.d);
    const typename S::V inverse = S::set1(1.0f / __builtin_sqrtf(mean + args.eps));
    const auto value = [&](int64_t i, int64_t n) {
      return S::mul(S::mul(load<S>(x + i, n), inverse), load<S>(args.weight + i, n));
    };
    if (args.y == nullptr) {
      quantize_row<S>(value, args.d, args.q, row);
      continue;
    }
    float* y = args.y + row * args.y_stride;
    for_each_vector<S>(0, args.d, [&](int64_t i, int64_t n) { store<S>(y + i, value(i, n), n); });
    if (args.q.q != nullptr) quantize_values<S>(y, args.d, args.q, row);
  }
}

// ---- activation, residual, rotary embedding -----------------------------------------------------

template <typename S>
void silu_mul(const SiluMulArgs& args, const Worker& worker) {
  // A row up to this long is kept between the two passes of its quantization (64 KiB of stack);
  // longer ones are computed twice.
  constexpr int64_t kStaged = 16384;
  const bool by_columns = args.q.q == nullptr && args.m < worker.count;
  const Range rows = by_columns ? Range{0, args.m} : split(args.m, 1, worker);
  const Range columns = by_columns ? split(args.f, 64, worker) : Range{0, args.f};
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* gate = args.gate + row * args.gate_stride;
    const float* up = args.up + row * args.up_stride;
    const auto value = [&](int64_t i, int64_t n) {
      const typename S::V g = load<S>(gate + i, n);
      const typename S::V denominator = S::add(S::set1(1.0f), exp<S>(S::sub(S::zero(), g)));
      return S::mul(S::div(g, denominator), load<S>(up + i, n));
    };
    if (args.y == nullptr && args.f > kStaged) {
      quantize_row<S>(value, args.f, args.q, row);
      continue;
    }
    alignas(64) float staged[kStaged];
    float* y = args.y == nullptr ? staged : args.y + row * args.y_stride;
    for_each_vector<S>(columns.begin, columns.end,
                       [&](int64_t i, int64_t n) { store<S>(y + i, value(i, n), n); });
    if (args.q.q != nullptr) quantize_values<S>(y, args.f, args.q, row);
  }
}

template <typename S>
void add(const AddArgs& args, const Worker& worker) {
  const Range part = split(args.count, 64, worker);
  for_each_vector<S>(part.begin, part.end, [&](int64_t i, int64_t n) {
    store<S>(args.y + i, S::add(load<S>(args.x + i, n), load<S>(args.r + i, n)), n);
  });
}

template <typename S>
void rope(const RopeArgs& args, const Worker& worker) {
  const int64_t half = args.rotary_dims / 2;
  const Range part = split(args.t * args.heads, 1, worker);
  for (int64_t unit = part.begin; unit < part.end; ++unit) {
    const int64_t t = unit / args.heads;
    float* x = args.x + t * args.x_stride + unit % args.heads * args.head_dim;
    const float* cosines = args.cos + args.positions[t] * half;
    const float* sines = args.sin + args.positions[t] * half;
    for_each_vector<S>(0, half, [&](int64_t i, int64_t n) {
      const typename S::V a = load<S>(x + i, n), b = load<S>(x + half + i, n);
      const typename S::V c = load<S>(cosines + i, n), s = load<S>(sines + i, n);
      store<S>(x + i, S::sub(S::mul(a, c), S::mul(b, s)), n);
      store<S>(x + half + i, S::add(S::mul(b, c), S::mul(a, s)), n);
    });
  }
}

// ---- cache and embedding ------------------------------------------------------------------------

// Of f32 caches; head_dim must be a multiple of S::kLanes.
template <typename S>
void kv_write_rows(const KvWriteArgs& args, const Worker& worker) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = cache.head_dim, p = cache.page_tokens;
  const Range part = split(args.batch.t * cache.kv_heads, 1, worker);
  for (int64_t unit = part.begin; unit < part.end; ++unit) {
    const int64_t t = unit / cache.kv_heads, head = unit % cache.kv_heads;
    const int64_t page = args.batch.slots[t] / p;
    const int64_t offset = args.batch.slots[t] % p, lane = offset % kTileTokens;
    float* k = keys_of(cache, page, head) + (offset - lane) * dh + lane;
    float* v = values_of(cache, page, head) + offset * dh;
    const float* from_k = args.k + t * args.k_stride + head * dh;
    const float* from_v = args.v + t * args.v_stride + head * dh;
    for (int64_t d = 0; d < dh; d += S::kLanes) {
      float lanes[S::kLanes];
      S::store(lanes, S::load(from_k + d));
      for (int64_t i = 0; i < S::kLanes; ++i) k[(d + i) * kTileTokens] = lanes[i];
      S::store(v + d, S::load(from_v + d));
    }
  }
}

template <typename S>
void embedding(const EmbeddingArgs& args, const Worker& worker) {
  const WeightView& table = args.table;
  const Range rows = split(args.t, 1, worker);
  for (int64_t t = rows.begin; t < rows.end; ++t) {
    float* out = args.out + t * args.out_stride;
    if (table.format == WeightFormat::kF16 && table.k % S::kLanes == 0) {
      const uint16_t* from = static_cast<const uint16_t*>(table.data) + args.ids[t] * table.k;
      for (int64_t i = 0; i < table.k; i += S::kLanes) S::store(out + i, S::load_element(from + i));
    } else {
      dequantize_rows(table, args.ids[t], args.ids[t] + 1, out);
    }
  }
}

// ---- reductions over logits ---------------------------------------------------------------------

// Largest element, NaN ignored; −inf if there is none.
template <typename S>
inline float maximum(const float* x, int64_t n) {
  using V = typename S::V;
  const V lowest = S::set1(-__builtin_inff());
  V a = lowest, b = a, c = a, d = a;
  int64_t i = 0;
  for (; i + 4 * S::kLanes <= n; i += 4 * S::kLanes) {
    a = S::max(S::load(x + i), a);
    b = S::max(S::load(x + i + S::kLanes), b);
    c = S::max(S::load(x + i + 2 * S::kLanes), c);
    d = S::max(S::load(x + i + 3 * S::kLanes), d);
  }
  for_each_vector<S>(i, n, [&](int64_t at, int64_t count) {
    const V v =
        count == S::kLanes ? S::load(x + at) : S::load_partial(x + at, count, -__builtin_inff());
    a = S::max(v, a);
  });
  return S::reduce_max(S::max(S::max(a, b), S::max(c, d)));
}

template <typename S>
int64_t argmax(const float* x, int64_t n) {
  const float largest = maximum<S>(x, n);
  if (largest == -__builtin_inff()) return 0;
  const typename S::V wanted = S::set1(largest);
  int64_t i = 0;
  for (; i + S::kLanes <= n; i += S::kLanes)
    if (const uint32_t equal = S::equal_mask(S::load(x + i), wanted))
      return i + __builtin_ctz(equal);
  while (i < n && x[i] != largest) ++i;
  return i;
}

// Sums of f32 run over at most this many elements before they are added to a double: a lane holds
// at most kSumBlock / lanes terms, so the f32 part of the error stays below 64 · 2⁻²⁴ relative.
constexpr int64_t kSumBlock = 512;

template <typename S>
float log_sum_exp(const float* x, int64_t n) {
  const float largest = maximum<S>(x, n);
  if (largest == __builtin_inff() || largest == -__builtin_inff()) return largest;
  const typename S::V shift = S::set1(largest);
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    typename S::V part = S::zero();
    for_each_vector<S>(begin, least(n, begin + kSumBlock), [&](int64_t i, int64_t count) {
      const typename S::V v =
          count == S::kLanes ? S::load(x + i) : S::load_partial(x + i, count, -__builtin_inff());
      part = S::add(part, exp<S>(S::sub(v, shift)));
    });
    sum += static_cast<double>(S::reduce_add(part));
  }
  return static_cast<float>(largest + ::log(sum));
}

template <typename S>
double kl_divergence(const float* x, float lse_x, const float* y, float lse_y, int64_t n) {
  using V = typename S::V;
  const V shift_x = S::set1(lse_x), shift_y = S::set1(lse_y);
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kSumBlock) {
    V part = S::zero();
    for_each_vector<S>(begin, least(n, begin + kSumBlock), [&](int64_t i, int64_t count) {
      const bool full = count == S::kLanes;
      const V vx = full ? S::load(x + i) : S::load_partial(x + i, count, -__builtin_inff());
      const V log_p = S::sub(vx, shift_x);
      const V log_q = S::sub(load<S>(y + i, count), shift_y);
      const V p = exp<S>(log_p);
      // Where p is 0 the term is 0, also when a difference of infinities is not a number.
      part = S::add(part, S::zero_where_zero(S::mul(p, S::sub(log_p, log_q)), p));
    });
    sum += static_cast<double>(S::reduce_add(part));
  }
  return sum;
}

}  // namespace
}  // namespace whit::cpu
