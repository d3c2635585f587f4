// Attention compared with double precision, and its bits among batches and ways to compute it.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/small_ops.h"

namespace whit::cuda {
namespace {

struct Case {
  int64_t heads, kv_heads, dim, page_tokens, window;
  KvStorage storage;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.heads << "/" << c.kv_heads << " heads of " << c.dim << ", pages of " << c.page_tokens
       << ", window " << c.window
       << (c.storage == KvStorage::kBf16   ? ", bf16"
           : c.storage == KvStorage::kInt8 ? ", int8"
                                           : ", fp8");
}

uint16_t bits_of(float x) {
  const __nv_bfloat16 y = __float2bfloat16_rn(x);
  return reinterpret_cast<const uint16_t&>(y);
}
float value_of(uint16_t bits) {
  return __bfloat162float(reinterpret_cast<const __nv_bfloat16&>(bits));
}

float e4m3_value(uint8_t code) { return __half2float(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)); }

// Sequences with their keys and values in shuffled pages; a row of queries for each position.
class Sequences {
 public:
  Sequences(const Case& c, std::vector<int64_t> lengths)
      : case_(c), lengths_(std::move(lengths)), random_(static_cast<uint32_t>(c.dim + c.window)) {
    most_pages_ = 0;
    int64_t pages = 1;
    for (const int64_t length : lengths_) {
      const int64_t own = (length + c.page_tokens - 1) / c.page_tokens;
      most_pages_ = std::max(most_pages_, own);
      pages += own;
    }
    std::vector<int32_t> order(pages);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin() + 1, order.end(), random_);  // page 0 belongs to none
    int64_t next = 1;
    for (const int64_t length : lengths_) {
      table_.emplace_back();
      for (int64_t i = 0; i < length; i += c.page_tokens) table_.back().push_back(order[next++]);
    }
    const int64_t rows = pages * c.kv_heads * c.page_tokens;
    // Where nothing is stored there are NaNs, or codes and NaN scales.
    for (int which = 0; which < 2; ++which) {
      cache_[which].assign(rows * c.dim, 0x7fc1);
      codes_[which].assign(rows * c.dim, 77);
      scales_[which].assign(rows, NAN);
    }
    std::normal_distribution<float> normal;
    for (size_t b = 0; b < lengths_.size(); ++b) {
      for (int64_t t = 0; t < lengths_[b]; ++t)
        for (int64_t h = 0; h < c.kv_heads; ++h)
          for (int which = 0; which < 2; ++which) {
            const int64_t row = row_of(b, h, t);
            const float size = 1 + static_cast<float>(random_() % 4);
            scales_[which][row] = size / 40;
            for (int64_t d = 0; d < c.dim; ++d) {
              const float x = normal(random_);
              cache_[which][row * c.dim + d] = bits_of(x * size / 2);
              codes_[which][row * c.dim + d] =
                  c.storage == KvStorage::kFp8
                      ? __nv_cvt_float_to_fp8(40 * x, __NV_SATFINITE, __NV_E4M3)
                      : static_cast<uint8_t>(
                            static_cast<int8_t>(std::clamp(std::round(40 * x), -127.0f, 127.0f)));
            }
          }
      queries_.emplace_back(lengths_[b] * c.heads * c.dim);
      for (uint16_t& q : queries_.back()) q = bits_of(normal(random_));
    }
  }

  // The output rows of the last tokens[i] positions of sequences[i] before contexts[i], as one
  // step.
  struct Step {
    std::vector<int64_t> sequences, contexts, tokens;
  };
  std::vector<std::vector<uint16_t>> run(const Step& step) const {
    const Case& c = case_;
    Memory memory;
    const int64_t group = c.heads / c.kv_heads, width = c.heads * c.dim;
    std::vector<int32_t> starts{0}, contexts, table, tiles;
    std::vector<int32_t> widened_first;
    std::vector<uint16_t> q;
    int64_t chunks = 0, widened = 0, widened_most = 0;
    const auto count = static_cast<int64_t>(step.sequences.size());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = step.sequences[i], context = step.contexts[i], tokens = step.tokens[i];
      starts.push_back(starts.back() + static_cast<int32_t>(tokens));
      contexts.push_back(static_cast<int32_t>(context));
      // What lies behind the context is no page.
      std::vector<int32_t> own(most_pages_, 0x7fffff);
      std::copy_n(table_[b].begin(), (context + c.page_tokens - 1) / c.page_tokens, own.begin());
      table.insert(table.end(), own.begin(), own.end());
      const auto from = queries_[b].begin() + (context - tokens) * width;
      q.insert(q.end(), from, from + tokens * width);
      const int64_t own_chunks = (context + kChunk - 1) / kChunk;
      widened_first.push_back(tokens * group <= kDecodeRows ? -1 : static_cast<int32_t>(widened));
      if (tokens * group <= kDecodeRows) {
        chunks = std::max(chunks, attention_chunks(context, tokens, c.window));
        continue;
      }
      widened += own_chunks;
      widened_most = std::max(widened_most, own_chunks);
      for (int64_t row = 0; row < tokens * group; row += kPrefillRows) {
        tiles.push_back(static_cast<int32_t>(i));
        tiles.push_back(static_cast<int32_t>(row));
      }
    }
    const bool coded = c.storage != KvStorage::kBf16;
    DeviceKv cache{.storage = c.storage,
                   .page_tokens = c.page_tokens,
                   .kv_heads = c.kv_heads,
                   .head_dim = c.dim};
    cache.k = coded ? static_cast<void*>(memory.copy(codes_[0])) : memory.copy(cache_[0]);
    cache.v = coded ? static_cast<void*>(memory.copy(codes_[1])) : memory.copy(cache_[1]);
    if (coded) cache.k_scales = memory.copy(scales_[0]), cache.v_scales = memory.copy(scales_[1]);
    const int64_t rows = starts.back();
    void* out = memory.bytes(rows * width * 2, 0xff);
    int32_t* counters = memory.copy(std::vector<int32_t>(count * c.kv_heads));
    const AttentionArgs args{
        .q = memory.copy(q),
        .q_stride = width,
        .heads = c.heads,
        .scale = 1 / std::sqrt(static_cast<float>(c.dim)),
        .sliding_window = c.window,
        .batch = {.t = rows,
                  .b = count,
                  .query_start = memory.copy(starts),
                  .context_len = memory.copy(contexts),
                  .block_table = memory.copy(table),
                  .max_blocks = most_pages_},
        .cache = cache,
        .out = out,
        .out_stride = width,
        .max_chunks = chunks,
        .partials = static_cast<float*>(
            memory.bytes(attention_partial_bytes(count, c.kv_heads, chunks, c.dim), 0xff)),
        .counters = counters,
        .tiles = memory.copy(tiles),
        .tile_count = static_cast<int64_t>(tiles.size()) / 2,
        .widened = coded ? memory.bytes(attention_widened_bytes(widened, c.kv_heads, c.dim), 0xff)
                         : nullptr,
        .widened_first = memory.copy(widened_first),
        .widened_chunks = widened,
        .widened_most = widened_most};
    small_ops().attention(args, nullptr);
    check(cudaDeviceSynchronize(), "attention");
    std::vector<uint16_t> all(rows * width);
    check(cudaMemcpy(all.data(), out, all.size() * 2, cudaMemcpyDeviceToHost), "output");
    std::vector<int32_t> left(count * c.kv_heads);
    check(cudaMemcpy(left.data(), counters, left.size() * 4, cudaMemcpyDeviceToHost), "counters");
    EXPECT_EQ(left, std::vector<int32_t>(count * c.kv_heads)) << "counters";
    std::vector<std::vector<uint16_t>> outputs;
    for (int64_t i = 0; i < count; ++i)
      outputs.emplace_back(all.begin() + starts[i] * width, all.begin() + starts[i + 1] * width);
    return outputs;
  }

  // Largest error of a row's values over what rounding may do. Probabilities and the output are
  // rounded to bf16 (2⁻⁸ of each); scores are sums of float products, of which the tensor cores
  // keep at least 22 bits, so that a probability is off by their magnitude · 2⁻²¹.
  double worst(int64_t b, int64_t position, const uint16_t* out) const {
    const Case& c = case_;
    double worst = 0;
    const int64_t first = c.window == 0 ? 0 : std::max<int64_t>(0, position - c.window + 1);
    std::vector<double> scores(position + 1 - first);
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads);
      const uint16_t* q = queries_[b].data() + (position * c.heads + h) * c.dim;
      double largest = -INFINITY, magnitude = 0;
      for (int64_t t = first; t <= position; ++t) {
        double sum = 0, size = 0;
        for (int64_t d = 0; d < c.dim; ++d) {
          const double product = static_cast<double>(value_of(q[d])) * stored(0, b, kv, t, d);
          sum += product, size += std::abs(product);
        }
        scores[t - first] = sum / std::sqrt(static_cast<double>(c.dim));
        magnitude = std::max(magnitude, size / std::sqrt(static_cast<double>(c.dim)));
        largest = std::max(largest, scores[t - first]);
      }
      double length = 0;
      for (double& s : scores) s = std::exp(s - largest), length += s;
      for (int64_t d = 0; d < c.dim; ++d) {
        double sum = 0, size = 0;
        for (int64_t t = first; t <= position; ++t) {
          const double product = scores[t - first] * stored(1, b, kv, t, d);
          sum += product, size += std::abs(product);
        }
        const double error = std::abs(value_of(out[h * c.dim + d]) - sum / length);
        const double most = size / length * (0x1p-7 + magnitude * 0x1p-21) + 1e-30;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error / most);
      }
    }
    return worst;
  }

 private:
  int64_t row_of(int64_t b, int64_t head, int64_t t) const {
    return (table_[b][t / case_.page_tokens] * case_.kv_heads + head) * case_.page_tokens +
           t % case_.page_tokens;
  }
  double stored(int which, int64_t b, int64_t head, int64_t t, int64_t d) const {
    const int64_t row = row_of(b, head, t);
    const int64_t at = row * case_.dim + d;
    if (case_.storage == KvStorage::kBf16) return value_of(cache_[which][at]);
    return static_cast<double>(case_.storage == KvStorage::kInt8
                                   ? static_cast<float>(static_cast<int8_t>(codes_[which][at]))
                                   : e4m3_value(codes_[which][at])) *
           scales_[which][row];
  }

  Case case_;
  std::vector<int64_t> lengths_;
  std::mt19937 random_;
  int64_t most_pages_;
  std::vector<std::vector<int32_t>> table_;
  std::vector<uint16_t> cache_[2];
  std::vector<uint8_t> codes_[2];
  std::vector<float> scales_[2];
  std::vector<std::vector<uint16_t>> queries_;
};

class CudaAttention : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU";
  }
};

TEST_P(CudaAttention, decode_is_near_double_precision) {
  const Sequences sequences(GetParam(), {1, 700, 128, 129, 2000, 17, 255});
  const Sequences::Step step{
      {0, 1, 2, 3, 4, 5, 6}, {1, 700, 128, 129, 2000, 17, 255}, std::vector<int64_t>(7, 1)};
  const auto out = sequences.run(step);
  for (int64_t i = 0; i < 7; ++i)
    EXPECT_LE(sequences.worst(i, step.contexts[i] - 1, out[i].data()), 1) << "sequence " << i;
}

TEST_P(CudaAttention, prefill_is_near_double_precision) {
  const Sequences sequences(GetParam(), {40, 333, 700});
  const Sequences::Step step{{0, 1, 2}, {40, 333, 700}, {40, 333, 130}};
  const auto out = sequences.run(step);
  const int64_t width = GetParam().heads * GetParam().dim;
  for (int64_t i = 0; i < 3; ++i)
    for (int64_t t = 0; t < step.tokens[i]; t += t % 7 + 5)
      EXPECT_LE(sequences.worst(i, step.contexts[i] - step.tokens[i] + t, &out[i][t * width]), 1)
          << "sequence " << i << " token " << t;
}

TEST_P(CudaAttention, decode_does_not_depend_on_the_batch) {
  std::vector<int64_t> lengths{900, 5, 1300, 128, 4000, 64, 513, 1, 333, 2048};
  for (int64_t i = 0; i < 40; ++i) lengths.push_back(1 + i * 37 % 400);
  const Sequences sequences(GetParam(), lengths);
  Sequences::Step all;
  for (size_t i = 0; i < lengths.size(); ++i) {
    all.sequences.push_back(static_cast<int64_t>(i));
    all.contexts.push_back(lengths[i]);
    all.tokens.push_back(1);
  }
  const auto together = sequences.run(all);
  for (int64_t i = 0; i < 12; ++i)
    EXPECT_EQ(sequences.run({{i}, {lengths[i]}, {1}})[0], together[i]) << "sequence " << i;
  const auto some = sequences.run({{4, 0, 9}, {4000, 900, 2048}, {1, 1, 1}});
  EXPECT_EQ(some[0], together[4]);
  EXPECT_EQ(some[2], together[9]);
}

TEST_P(CudaAttention, prompt_and_decode_make_the_same_bits) {
  const std::vector<int64_t> lengths{700, 260};
  const Sequences sequences(GetParam(), lengths);
  const int64_t group = GetParam().heads / GetParam().kv_heads;
  const int64_t width = GetParam().heads * GetParam().dim, few = kDecodeRows / group;
  const auto prompt = sequences.run({{0, 1}, {700, 260}, {700, 260}});
  for (int64_t b = 0; b < 2; ++b)
    for (const int64_t context :
         {int64_t{1}, few, int64_t{127}, int64_t{128}, int64_t{140}, int64_t{257}, lengths[b]}) {
      const auto at = prompt[b].begin() + context * width;
      for (const int64_t tokens : {int64_t{1}, std::min(few, context)})
        EXPECT_EQ(sequences.run({{b}, {context}, {tokens}})[0],
                  std::vector<uint16_t>(at - tokens * width, at))
            << "sequence " << b << ", " << tokens << " tokens before " << context;
    }
  const auto rest = sequences.run({{1, 0}, {260, 700}, {60, 333}});
  EXPECT_TRUE(std::equal(rest[0].begin(), rest[0].end(), prompt[1].end() - 60 * width));
  EXPECT_TRUE(std::equal(rest[1].begin(), rest[1].end(), prompt[0].end() - 333 * width));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaAttention,
    ::testing::Values(
        Case{32, 8, 128, 32, 0, KvStorage::kBf16}, Case{32, 8, 128, 32, 0, KvStorage::kInt8},
        Case{9, 3, 64, 32, 0, KvStorage::kBf16}, Case{9, 3, 64, 16, 0, KvStorage::kInt8},
        Case{16, 1, 128, 48, 0, KvStorage::kBf16}, Case{8, 1, 128, 128, 100, KvStorage::kInt8},
        Case{4, 4, 80, 64, 0, KvStorage::kBf16}, Case{4, 2, 48, 32, 200, KvStorage::kBf16},
        Case{4, 2, 16, 16, 24, KvStorage::kBf16}, Case{6, 2, 32, 32, 0, KvStorage::kInt8},
        Case{14, 2, 64, 32, 130, KvStorage::kBf16}, Case{2, 2, 112, 16, 0, KvStorage::kInt8},
        Case{32, 8, 128, 32, 0, KvStorage::kFp8}, Case{9, 3, 64, 16, 70, KvStorage::kFp8}));

}  // namespace
}  // namespace whit::cuda
