// Small operations in plain C++: the row that every x86-64 can run.
#include "kernels/cpu/small_ops.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <limits>

#include "kernels/cpu/portable/attention.h"

namespace whit::cpu::portable {
namespace {

uint32_t magnitude_bits(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }

// value(i) gives element i of the row; it is evaluated twice.
template <typename Value>
void quantize_row(const Value& value, int64_t k, const Int8Rows& out, int64_t row) {
  float scale = out.static_scale;
  if (!(scale > 0)) {
    uint32_t largest = 0;  // NaN orders above infinity and stays visible in the scale
    for (int64_t i = 0; i < k; ++i) largest = std::max(largest, magnitude_bits(value(i)));
    scale = std::bit_cast<float>(largest) / 127.0f;
  }
  const float inverse = scale >= FLT_MIN && scale <= FLT_MAX ? 1.0f / scale : 0.0f;
  if (scale < FLT_MIN) scale = 0.0f;
  if (out.scale != nullptr) out.scale[row] = scale;

  int8_t* codes = out.q + row * out.stride;
  const int64_t groups = out.group_sums == nullptr ? 1 : ceil_div(k, out.group_size);
  const int64_t group_size = out.group_sums == nullptr ? k : out.group_size;
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    const int64_t end = std::min(k, (g + 1) * group_size);
    for (int64_t i = g * group_size; i < end; ++i) {
      const float scaled = value(i) * inverse;
      const float clamped = scaled > -127.0f ? scaled : -127.0f;  // NaN becomes −127
      codes[i] = static_cast<int8_t>(std::nearbyintf(clamped < 127.0f ? clamped : 127.0f));
      sum += codes[i];
    }
    if (out.group_sums != nullptr) out.group_sums[row * groups + g] = sum;
  }
  std::fill(codes + k, codes + out.stride, int8_t{0});
}

void rms_norm(const RmsNormArgs& args, const Worker& worker) {
  const Range rows = split(args.m, 1, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x + row * args.x_stride;
    double squares = 0;
    for (int64_t i = 0; i < args.d; ++i) squares += static_cast<double>(x[i]) * x[i];
    const auto inverse =
        static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(args.d) + args.eps));
    const auto value = [&](int64_t i) { return x[i] * inverse * args.weight[i]; };
    // Codes first: y may be the row x.
    if (args.q.q != nullptr) quantize_row(value, args.d, args.q, row);
    if (args.y != nullptr)
      for (int64_t i = 0; i < args.d; ++i) args.y[row * args.y_stride + i] = value(i);
  }
}

void quantize(const QuantizeArgs& args, const Worker& worker) {
  const Range rows = split(args.m, 1, worker);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* x = args.x + row * args.x_stride;
    quantize_row([&](int64_t i) { return x[i]; }, args.k, args.q, row);
  }
}

void silu_mul(const SiluMulArgs& args, const Worker& worker) {
  const bool by_columns = args.q.q == nullptr && args.m < worker.count;
  const Range rows = by_columns ? Range{0, args.m} : split(args.m, 1, worker);
  const Range columns = by_columns ? split(args.f, 64, worker) : Range{0, args.f};
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const float* gate = args.gate + row * args.gate_stride;
    const float* up = args.up + row * args.up_stride;
    const auto value = [&](int64_t i) { return gate[i] / (1.0f + std::exp(-gate[i])) * up[i]; };
    if (args.q.q != nullptr) quantize_row(value, args.f, args.q, row);
    if (args.y != nullptr)
      for (int64_t i = columns.begin; i < columns.end; ++i)
        args.y[row * args.y_stride + i] = value(i);
  }
}

void add(const AddArgs& args, const Worker& worker) {
  const Range part = split(args.count, 64, worker);
  for (int64_t i = part.begin; i < part.end; ++i) args.y[i] = args.x[i] + args.r[i];
}

void rope(const RopeArgs& args, const Worker& worker) {
  const int64_t half = args.rotary_dims / 2;
  const Range part = split(args.t * args.heads, 1, worker);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t t = i / args.heads;
    float* x = args.x + t * args.x_stride + i % args.heads * args.head_dim;
    const float* cos = args.cos + args.positions[t] * half;
    const float* sin = args.sin + args.positions[t] * half;
    for (int64_t d = 0; d < half; ++d) {
      const float a = x[d], b = x[d + half];
      x[d] = a * cos[d] - b * sin[d];
      x[d + half] = b * cos[d] + a * sin[d];
    }
  }
}

void embedding(const EmbeddingArgs& args, const Worker& worker) {
  const Range rows = split(args.t, 1, worker);
  for (int64_t t = rows.begin; t < rows.end; ++t)
    dequantize_rows(args.table, args.ids[t], args.ids[t] + 1, args.out + t * args.out_stride);
}

int64_t argmax(const float* x, int64_t n) {
  int64_t best = 0;
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i)
    if (x[i] > largest) {  // never true for NaN
      largest = x[i];
      best = i;
    }
  return best;
}

float log_sum_exp(const float* x, int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  if (std::isinf(largest)) return largest;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - largest);
  return static_cast<float>(largest + std::log(sum));
}

double kl_divergence(const float* x, float lse_x, const float* y, float lse_y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float log_p = x[i] - lse_x;
    const float p = std::exp(log_p);
    if (p > 0) sum += p * static_cast<double>(log_p - (y[i] - lse_y));
  }
  return sum;
}

}  // namespace

const SmallOps kSmallOps = {.name = "portable/small_ops",
                            .isa = Isa::kPortable,
                            .rms_norm = rms_norm,
                            .quantize = quantize,
                            .silu_mul = silu_mul,
                            .add = add,
                            .rope = rope,
                            .kv_write = kv_write,
                            .kv_commit = kv_commit,
                            .attention_scratch_bytes = attention_scratch_bytes,
                            .attention = attention,
                            .attention_in_parts = attention_in_parts,
                            .attention_merge = attention_merge,
                            .embedding = embedding,
                            .argmax = argmax,
                            .log_sum_exp = log_sum_exp,
                            .kl_divergence = kl_divergence};

}  // namespace whit::cpu::portable
