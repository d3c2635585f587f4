// Attention and cache writes of every ISA against ops/reference, and the promise that a query's
// result depends on its own context alone, bit for bit.
#include "ops/reference/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "kernels/cpu/small_ops.h"
#include "kernels/cpu/small_ops_test_util.h"
#include "ops/kv_format.h"

namespace whit::cpu {
namespace {

struct Sequence {
  int64_t context;  // after this step
  int64_t queries;  // rows of this step
};

struct Shape {
  int64_t heads = 9, kv_heads = 3, head_dim = 64, page_tokens = 32;
  KvType type = KvType::kF16;
  int64_t sliding_window = 0;
  KeyLayout keys = KeyLayout::kToken;
};

// A paged cache whose pages are dealt out in random order and whose unused parts hold NaN.
class PagedCache {
 public:
  PagedCache(const Shape& shape, const std::vector<int64_t>& contexts, uint32_t seed)
      : shape_(shape) {
    for (const int64_t context : contexts)
      max_blocks_ = std::max(max_blocks_, ceil_div(context, shape.page_tokens));
    const int64_t b = static_cast<int64_t>(contexts.size()), pages = b * max_blocks_ + 1;
    pages_ = pages;
    const int64_t numbers = pages * shape.kv_heads * shape.page_tokens * shape.head_dim;
    const int64_t blocks = pages * shape.kv_heads * shape.page_tokens / kKvBlockTokens;
    k_bytes_ = v_bytes_ = numbers * 4;
    if (has_blocks(shape.type)) {
      k_bytes_ = blocks * key_block_bytes(shape.type, shape.keys, shape.head_dim);
      v_bytes_ = blocks * value_block_bytes(shape.type, shape.head_dim);
    }
    for (auto [buffer, bytes] : {std::pair{&k_, k_bytes_}, std::pair{&v_, v_bytes_}}) {
      *buffer = Buffer(bytes);
      std::memset(buffer->as<void>(), 0xff, bytes);  // NaN in f32 as in f16
    }
    const int64_t tails = b * shape.kv_heads * kKvTailTokens * shape.head_dim;
    for (Buffer* buffer : {&k_tails_, &v_tails_}) {
      *buffer = Buffer(tails * 2);
      std::fill_n(buffer->as<uint16_t>(), tails, uint16_t{0x7e00});
    }
    tails_.resize(b);
    std::iota(tails_.rbegin(), tails_.rend(), 0);
    table_.resize(b * max_blocks_);
    std::iota(table_.begin(), table_.end(), 1);
    std::mt19937 random(seed);
    std::shuffle(table_.begin(), table_.end(), random);
  }

  KvCacheView view() {
    return {.type = shape_.type,
            .key_layout = shape_.keys,
            .k = k_.as<void>(),
            .v = v_.as<void>(),
            .k_tails = k_tails_.as<uint16_t>(),
            .v_tails = v_tails_.as<uint16_t>(),
            .k_page_bytes = k_bytes_ / pages_,
            .v_page_bytes = v_bytes_ / pages_,
            .page_tokens = shape_.page_tokens,
            .kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim};
  }
  const int32_t* tails() const { return tails_.data(); }
  void clear() {
    std::memset(k_.as<void>(), 0, k_bytes_);
    std::memset(v_.as<void>(), 0, v_bytes_);
  }
  bool equals(const PagedCache& other) const {
    return std::memcmp(k_.as<void>(), other.k_.as<void>(), k_bytes_) == 0 &&
           std::memcmp(v_.as<void>(), other.v_.as<void>(), v_bytes_) == 0 &&
           std::memcmp(k_tails_.as<void>(), other.k_tails_.as<void>(), k_tails_.bytes()) == 0 &&
           std::memcmp(v_tails_.as<void>(), other.v_tails_.as<void>(), v_tails_.bytes()) == 0;
  }
  int32_t slot(int64_t b, int64_t position) const {
    const int64_t page = table_[b * max_blocks_ + position / shape_.page_tokens];
    return static_cast<int32_t>(page * shape_.page_tokens + position % shape_.page_tokens);
  }
  const int32_t* table() const { return table_.data(); }
  int64_t max_blocks() const { return max_blocks_; }

 private:
  Shape shape_;
  int64_t max_blocks_ = 1, pages_ = 0;
  int64_t k_bytes_ = 0, v_bytes_ = 0;
  Buffer k_, v_, k_tails_, v_tails_;
  std::vector<int32_t> table_, tails_;
};

// Rows [begin, end) of sequence b of a fixed random text: the same numbers whichever step brings
// them.
struct Text {
  Text(const Shape& shape, int64_t tokens, uint32_t seed) {
    std::mt19937 random(seed);
    q = normal(random, tokens * shape.heads * shape.head_dim, 1.5f);
    k = normal(random, tokens * shape.kv_heads * shape.head_dim, 1.5f);
    v = normal(random, tokens * shape.kv_heads * shape.head_dim, 1.0f);
  }
  std::vector<float> q, k, v;
};

// A step's arguments for some rows of some sequences, with their storage.
class Step {
 public:
  Step(const Shape& shape, const std::vector<Text>& texts, const std::vector<Sequence>& sequences,
       PagedCache& cache)
      : shape_(shape), cache_(cache) {
    const int64_t qd = shape.heads * shape.head_dim, kvd = shape.kv_heads * shape.head_dim;
    query_start_.push_back(0);
    for (size_t b = 0; b < sequences.size(); ++b) {
      const auto [context, queries] = sequences[b];
      for (int64_t position = context - queries; position < context; ++position) {
        const Text& text = texts[b];
        q_.insert(q_.end(), text.q.begin() + position * qd, text.q.begin() + (position + 1) * qd);
        k_.insert(k_.end(), text.k.begin() + position * kvd, text.k.begin() + (position + 1) * kvd);
        v_.insert(v_.end(), text.v.begin() + position * kvd, text.v.begin() + (position + 1) * kvd);
        positions_.push_back(static_cast<int32_t>(position));
        slots_.push_back(cache.slot(static_cast<int64_t>(b), position));
      }
      query_start_.push_back(static_cast<int32_t>(positions_.size()));
      context_len_.push_back(static_cast<int32_t>(context));
    }
    out_.assign(positions_.size() * qd, std::numeric_limits<float>::quiet_NaN());
  }

  BatchView batch() const {
    return {.t = static_cast<int64_t>(positions_.size()),
            .b = static_cast<int64_t>(context_len_.size()),
            .positions = positions_.data(),
            .query_start = query_start_.data(),
            .context_len = context_len_.data(),
            .block_table = cache_.table(),
            .max_blocks = cache_.max_blocks(),
            .slots = slots_.data(),
            .tails = cache_.tails()};
  }
  KvWriteArgs write_args() const {
    const int64_t stride = shape_.kv_heads * shape_.head_dim;
    return {.k = k_.data(),
            .k_stride = stride,
            .v = v_.data(),
            .v_stride = stride,
            .batch = batch(),
            .cache = cache_.view()};
  }
  AttentionArgs attention_args() {
    const int64_t stride = shape_.heads * shape_.head_dim;
    return {.q = q_.data(),
            .q_stride = stride,
            .heads = shape_.heads,
            .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
            .sliding_window = shape_.sliding_window,
            .batch = batch(),
            .cache = cache_.view(),
            .k = k_.data(),
            .k_stride = shape_.kv_heads * shape_.head_dim,
            .v = v_.data(),
            .v_stride = shape_.kv_heads * shape_.head_dim,
            .out = out_.data(),
            .out_stride = stride};
  }
  // Writes the step's keys and values and attends with `workers` workers.
  const std::vector<float>& run(const SmallOps& ops, int workers) {
    on_workers(workers, [&](const Worker& worker) { ops.kv_write(write_args(), worker); });
    attend(ops, workers);
    on_workers(workers, [&](const Worker& worker) { ops.kv_commit(write_args(), worker); });
    return out_;
  }
  const std::vector<float>& attend(const SmallOps& ops, int workers) {
    AttentionArgs args = attention_args();
    const int64_t bytes = ops.attention_scratch_bytes(args);
    Buffer scratch(bytes * workers);
    args.scratch = scratch.as<std::byte>();
    on_workers(workers, [&](const Worker& worker) { ops.attention(args, worker); });
    if (ops.attention_in_parts(args, workers))
      on_workers(workers, [&](const Worker& worker) { ops.attention_merge(args, worker); });
    return out_;
  }
  // As tiles of bf16 multiply them.
  void round_queries() {
    const float scale = attention_args().scale * 0x1.715476p+0f;
    for (float& q : q_) q = kv_from_bf16(kv_bf16(scale * q)) / scale;
  }
  const std::vector<float>& attend_by_reference() {
    reference::attention(attention_args());
    return out_;
  }

 private:
  Shape shape_;
  PagedCache& cache_;
  std::vector<float> q_, k_, v_, out_;
  std::vector<int32_t> positions_, slots_, query_start_, context_len_;
};

std::vector<int64_t> contexts_of(const std::vector<Sequence>& sequences) {
  std::vector<int64_t> contexts;
  for (const Sequence& sequence : sequences) contexts.push_back(sequence.context);
  return contexts;
}

std::vector<Text> texts_for(const Shape& shape, const std::vector<Sequence>& sequences) {
  std::vector<Text> texts;
  for (const Sequence& sequence : sequences)
    texts.emplace_back(shape, sequence.context, static_cast<uint32_t>(texts.size() + 100));
  return texts;
}

// Writes what precedes the step, one step for all sequences.
void write_history(const Shape& shape, const std::vector<Text>& texts,
                   const std::vector<Sequence>& sequences, PagedCache& cache) {
  std::vector<Sequence> history;
  for (const auto [context, queries] : sequences)
    history.push_back({context - queries, context - queries});
  const Step step(shape, texts, history, cache);
  reference::kv_write(step.write_args());
  reference::kv_commit(step.write_args());
}

// A bound on |kernel − exact| for one query: with scores s of absolute error δ, the weights p = e^s
// / Σ have relative error ≤ 2δ + a few roundings, and Σ p·v ≤ max|v|.
//   δ: Dh products of |q·k| summed in f32, of sums ≤ ‖q‖‖k‖·scale (Cauchy), and 3 roundings of q
//   and scale sums over the context: one rounding per token in l and in o, and one α per block
//   Codes of 16 bits: queries of norm 32500 are rounded to integers, an error of deviation
//   ‖q‖‖k‖ · scale · 0.29 / 32500 of a score, of which 5 are allowed; weights that sum to 262100,
//   or of which the largest is 32767, too, √64 · 0.29 / 32767 of the largest value Integer caches:
//   queries are rounded to 2⁻¹⁶ of their largest, weights to 2⁻¹⁶ of the largest in a block; the
//   dot of a query with |c · scale| ≤ 2 · max|k| < 16 is off by Dh · 2⁻¹⁶ · 9 · 16 · 1/√Dh at most,
//   and by √Dh in place of Dh where signs are random, which they are
double tolerance(const Shape& shape, int64_t context) {
  constexpr double kEps = 0x1p-24;
  // Entries are normal with deviation 1.5: ‖q‖‖k‖ < 4 · 2.25 · Dh with room to spare.
  const double dh = static_cast<double>(shape.head_dim);
  const double largest_score = 4 * 2.25 * std::sqrt(dh);
  double delta = (std::sqrt(dh) * 4 + 3) * kEps * largest_score;
  double weights = 0;
  if (shape.type == KvType::kF16) {
    delta += 5 * 0.29 / 32500 * largest_score;
    weights = std::sqrt(64.0) * 0.29 / 32767;
  }
  if (is_integer(shape.type)) {
    delta += 0x1p-16 * 9 * 16 * 2;
    weights = 0x1p-16 * std::sqrt(64.0);
  }
  return 5.0 * (2 * delta + weights + (8 + 2 * std::sqrt(static_cast<double>(context)) * 4) * kEps);
}

class AttentionTest : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!cpu_has(GetParam())) GTEST_SKIP() << "this CPU has no " << isa_name(GetParam());
  }
  const SmallOps& ops() const { return small_ops(GetParam()); }
  bool by_tiles(const Shape& shape) const {
    return GetParam() == Isa::kAmx && shape.type == KvType::kBF16;
  }

  void expect_matches_reference(const Shape& shape, const std::vector<Sequence>& sequences,
                                int workers) {
    SCOPED_TRACE(
        fmt::format("H={} Hkv={} Dh={} P={} {} {} window={} workers={} first context={} queries={}",
                    shape.heads, shape.kv_heads, shape.head_dim, shape.page_tokens,
                    whit::name(shape.type), whit::name(shape.keys), shape.sliding_window, workers,
                    sequences[0].context, sequences[0].queries));
    PagedCache cache(shape, contexts_of(sequences), 5);
    const std::vector<Text> texts = texts_for(shape, sequences);
    write_history(shape, texts, sequences, cache);
    Step step(shape, texts, sequences, cache), oracle(shape, texts, sequences, cache);
    // Without the commit: the oracle reads the tails too.
    on_workers(workers, [&](const Worker& worker) { ops().kv_write(step.write_args(), worker); });
    const std::vector<float>& got = step.attend(ops(), workers);
    if (by_tiles(shape)) oracle.round_queries();
    const std::vector<float>& want = oracle.attend_by_reference();
    int64_t longest = 0;
    for (const Sequence& sequence : sequences) longest = std::max(longest, sequence.context);
    // Tiles round weights to bf16, after 2^x within 0.75 · 10⁻⁴.
    const double allowed =
        tolerance(shape, longest) + (by_tiles(shape) ? 5.0 * (0x1p-8 + 0x1p-12) : 0);
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      const double difference = std::fabs(static_cast<double>(got[i]) - want[i]);
      worst = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                     : std::max(worst, difference);
    }
    EXPECT_LE(worst, allowed);
  }
};

TEST_P(AttentionTest, kv_write_stores_what_the_reference_stores) {
  for (const int64_t head_dim : {8, 20, 24, 64})
    for (const KvType dtype : {KvType::kF16, KvType::kBF16, KvType::kF32}) {
      const Shape shape{
          .heads = 2, .kv_heads = 2, .head_dim = head_dim, .page_tokens = 32, .type = dtype};
      const std::vector<Sequence> sequences = {{40, 40}, {1, 1}, {33, 33}};
      std::vector<Text> texts = texts_for(shape, sequences);
      texts[0].k[3] =
          1e9f;  // beyond f16: clamped, so that masked tokens contribute zero times a number
      texts[0].v[5] = -1e9f;
      if (dtype == KvType::kBF16) {
        texts[0].k[7] = std::numeric_limits<float>::quiet_NaN();
        texts[0].v[9] = std::numeric_limits<float>::quiet_NaN();
        texts[0].k[6] = -0x1p-130f;
        texts[2].v[3] = 0x1.01p+3f;  // half way: to even
      }
      PagedCache want(shape, contexts_of(sequences), 6), got(shape, contexts_of(sequences), 6);
      reference::kv_write(Step(shape, texts, sequences, want).write_args());
      Step step(shape, texts, sequences, got);
      on_workers(3, [&](const Worker& worker) { ops().kv_write(step.write_args(), worker); });
      EXPECT_TRUE(got.equals(want)) << head_dim;
    }
}

// Every integer cache there is, then bf16.
std::vector<Shape> coded(Shape shape) {
  shape.page_tokens = 32;
  std::vector<Shape> shapes;
  for (const KvType type : {KvType::kInt8, KvType::kInt4})
    for (const KeyLayout keys : {KeyLayout::kToken, KeyLayout::kChannel}) {
      shape.type = type;
      shape.keys = keys;
      shapes.push_back(shape);
    }
  shape.type = KvType::kBF16;
  shape.keys = KeyLayout::kToken;
  shapes.push_back(shape);
  return shapes;
}

TEST_P(AttentionTest, codes_and_tails_are_the_references_whichever_steps_bring_the_tokens) {
  for (const int64_t head_dim : {8, 20, 64, 72})
    for (const Shape& shape : coded({.heads = 2, .kv_heads = 2, .head_dim = head_dim})) {
      const std::vector<int64_t> contexts = {100, 1, 64};
      const std::vector<Text> texts = texts_for(shape, {{100, 0}, {1, 0}, {64, 0}});
      PagedCache want(shape, contexts, 6), got(shape, contexts, 6);
      want.clear();  // codes of channels that only pad may be written or not
      got.clear();
      for (const std::vector<Sequence>& step :
           std::vector<std::vector<Sequence>>{{{40, 40}, {0, 0}, {64, 64}},
                                              {{41, 1}, {1, 1}, {64, 0}},
                                              {{100, 59}, {1, 0}, {64, 0}}}) {
        const Step oracle(shape, texts, step, want), run(shape, texts, step, got);
        reference::kv_write(oracle.write_args());
        reference::kv_commit(oracle.write_args());
        on_workers(3, [&](const Worker& worker) { ops().kv_write(run.write_args(), worker); });
        on_workers(3, [&](const Worker& worker) { ops().kv_commit(run.write_args(), worker); });
      }
      EXPECT_TRUE(got.equals(want))
          << head_dim << " " << whit::name(shape.type) << " " << whit::name(shape.keys);
    }
}

TEST_P(AttentionTest, integer_caches_match_the_reference_over_ragged_batches) {
  const std::vector<Sequence> decode = {{1, 1},  {2, 1},  {32, 1}, {33, 1},
                                        {64, 1}, {65, 1}, {97, 1}, {161, 1}};
  const std::vector<Sequence> mixed = {{40, 40}, {70, 1}, {33, 7}, {110, 75}, {31, 31}};
  for (const auto& [heads, kv_heads, head_dim] :
       {std::tuple<int64_t, int64_t, int64_t>{9, 3, 16}, {2, 2, 20}, {7, 1, 64}})
    for (const Shape& shape : coded({.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim})) {
      expect_matches_reference(shape, decode, 2);
      expect_matches_reference(shape, mixed, 3);
    }
  for (Shape shape : coded({.heads = 2, .kv_heads = 1, .head_dim = 128})) {
    shape.page_tokens = 128;
    expect_matches_reference(shape, {{200, 2}, {65, 9}}, 4);
  }
}

TEST_P(AttentionTest, integer_caches_with_sliding_windows_match_the_reference) {
  for (const int64_t window : {1, 16, 33, 64, 100})
    for (Shape shape : coded({.heads = 2, .kv_heads = 1, .head_dim = 16})) {
      shape.sliding_window = window;
      expect_matches_reference(shape, {{70, 70}, {200, 1}, {3, 1}, {129, 30}}, 2);
    }
}

TEST_P(AttentionTest, huge_key_channels_keep_their_small_neighbours_where_scales_are_per_channel) {
  // Queries and the small channels decide; the huge channel adds nearly the same to every score.
  const auto error = [&](const Shape& shape) {
    std::vector<Text> texts = {Text(shape, 96, 3)};
    for (int64_t t = 0; t < 96; ++t) texts[0].k[t * shape.head_dim + 5] += 300.0f;
    const std::vector<Sequence> sequences = {{96, 1}};
    Shape exact_shape = shape;
    exact_shape.type = KvType::kF32;
    PagedCache exact(exact_shape, {96}, 1), cache(shape, {96}, 1);
    write_history(exact_shape, texts, sequences, exact);
    write_history(shape, texts, sequences, cache);
    Step want(exact_shape, texts, sequences, exact), got(shape, texts, sequences, cache);
    const std::vector<float> a = want.run(ops(), 1), b = got.run(ops(), 1);
    double squares = 0, size = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      squares += (a[i] - b[i]) * (a[i] - b[i]);
      size += a[i] * a[i];
    }
    return std::sqrt(squares / size);
  };
  for (const KvType type : {KvType::kInt8, KvType::kInt4}) {
    const Shape token{.heads = 1, .kv_heads = 1, .page_tokens = 32, .type = type};
    Shape channel = token;
    channel.keys = KeyLayout::kChannel;
    EXPECT_LT(4 * error(channel), error(token)) << whit::name(type);
  }
}

TEST_P(AttentionTest, decode_matches_the_reference_over_ragged_contexts) {
  const std::vector<Sequence> sequences = {{1, 1},  {2, 1},   {63, 1}, {64, 1},
                                           {65, 1}, {130, 1}, {17, 1}};
  for (const auto& [heads, kv_heads] : {std::pair<int64_t, int64_t>{9, 3}, {4, 4}, {8, 1}})
    for (const int64_t head_dim : {8, 24, 64})
      for (const KvType dtype : {KvType::kF16, KvType::kBF16, KvType::kF32})
        expect_matches_reference({heads, kv_heads, head_dim, 32, dtype}, sequences, 2);
  expect_matches_reference({.heads = 14, .kv_heads = 2, .head_dim = 128}, sequences, 3);
}

TEST_P(AttentionTest, prefill_matches_the_reference_over_ragged_shapes) {
  for (const int64_t tokens : {2, 15, 16, 17, 64, 70, 300})
    for (const KvType dtype : {KvType::kF16, KvType::kBF16, KvType::kF32})
      expect_matches_reference({.heads = 6, .kv_heads = 2, .type = dtype},
                               {{tokens, tokens}, {tokens + 5, tokens}}, 3);
  expect_matches_reference({.heads = 3, .kv_heads = 1}, {{129, 129}}, 2);
}

// Against f32: what codes of 16 bits lose, and what numbers in f16 would.
TEST_P(AttentionTest, codes_of_16_bits_lose_no_more_than_f16_would) {
  const int64_t tokens = 300;
  for (const int64_t head_dim : {16, 64, 128})
    for (const float largest : {1.5f, 12.0f}) {  // of one channel of keys
      const Shape words{.heads = 3, .kv_heads = 1, .head_dim = head_dim};
      Shape exact = words;
      exact.type = KvType::kF32;
      std::vector<Text> texts = {Text(exact, tokens, 4)}, halves = texts;
      for (int64_t t = 0; t < tokens; ++t) texts[0].k[t * head_dim + 3] *= largest / 1.5f;
      for (auto [from, to] : {std::pair{&texts[0].k, &halves[0].k}, {&texts[0].v, &halves[0].v}})
        std::transform(from->begin(), from->end(), to->begin(),
                       [](float x) { return f16_to_f32(f32_to_f16(x)); });
      const auto attend = [&](const Shape& shape, const std::vector<Text>& of) {
        PagedCache cache(shape, {tokens}, 2);
        Step step(shape, of, {{tokens, tokens}}, cache);
        return step.run(ops(), 2);
      };
      const std::vector<float> want = attend(exact, texts);
      const auto loss = [&](const std::vector<float>& got) {
        double squares = 0, size = 0;
        for (size_t i = 0; i < want.size(); ++i) {
          squares += (got[i] - want[i]) * (got[i] - want[i]);
          size += want[i] * want[i];
        }
        return std::sqrt(squares / size);
      };
      EXPECT_LT(loss(attend(words, texts)), loss(attend(exact, halves)))
          << "Dh " << head_dim << ", largest " << largest;
    }
}

TEST_P(AttentionTest, large_and_odd_head_sizes_match_the_reference) {
  for (const int64_t head_dim : {20, 40, 72, 80, 96, 256})
    for (const KvType type : {KvType::kF16, KvType::kBF16})
      expect_matches_reference(
          {.heads = 4, .kv_heads = 2, .head_dim = head_dim, .page_tokens = 32, .type = type},
          {{90, 90}, {70, 1}, {33, 7}}, 2);
}

TEST_P(AttentionTest, one_big_page_and_mixed_batches_match_the_reference) {
  for (const KvType type : {KvType::kF16, KvType::kBF16})
    expect_matches_reference({.page_tokens = 1024, .type = type},
                             {{300, 20}, {200, 1}, {65, 65}, {700, 1}}, 4);
}

TEST_P(AttentionTest, sliding_windows_match_the_reference) {
  for (const int64_t window : {1, 5, 16, 63, 64, 65, 100}) {
    Shape shape{.heads = 3, .kv_heads = 1};
    shape.sliding_window = window;
    expect_matches_reference(shape, {{150, 150}, {200, 1}, {3, 1}, {129, 30}}, 2);
  }
}

TEST_P(AttentionTest, more_heads_per_kv_head_than_a_block_of_rows_match_the_reference) {
  for (const KvType type : {KvType::kF16, KvType::kBF16})
    expect_matches_reference({.heads = 200, .kv_heads = 2, .head_dim = 8, .type = type},
                             {{20, 20}, {5, 1}}, 3);
}

TEST_P(AttentionTest, scores_of_any_size_give_weights_that_sum_to_one) {
  // Keys so large that all but one token's weight underflow, and values equal: the result is that
  // value.
  const Shape shape{.heads = 2, .kv_heads = 1, .head_dim = 16, .type = KvType::kF32};
  std::vector<Text> texts = {Text(shape, 100, 1)};
  for (float& k : texts[0].k) k *= 1e4f;
  std::fill(texts[0].v.begin(), texts[0].v.end(), 0.75f);
  PagedCache cache(shape, {100}, 7);
  Step step(shape, texts, {{100, 100}}, cache);
  for (const float value : step.run(ops(), 2)) EXPECT_NEAR(value, 0.75f, 100 * 0x1p-24);
}

// Runs one sequence in steps of the given sizes and returns all rows of out.
std::vector<float> in_steps(const SmallOps& ops, const Shape& shape, const std::vector<Text>& texts,
                            const std::vector<int64_t>& sizes, int workers) {
  const int64_t tokens = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  PagedCache cache(shape, {tokens}, static_cast<uint32_t>(sizes.size()));
  std::vector<float> out;
  int64_t done = 0;
  for (const int64_t size : sizes) {
    done += size;
    Step step(shape, texts, {{done, size}}, cache);
    const std::vector<float>& rows = step.run(ops, workers);
    out.insert(out.end(), rows.begin(), rows.end());
  }
  return out;
}

TEST_P(AttentionTest,
       chunked_prefill_token_by_token_decode_and_any_worker_count_give_the_same_bits) {
  const int64_t tokens = 140;
  for (const Shape& shape :
       {Shape{.heads = 6, .kv_heads = 2}, Shape{.heads = 6, .kv_heads = 2, .sliding_window = 37},
        Shape{.heads = 4, .kv_heads = 2, .head_dim = 40, .type = KvType::kF32},
        Shape{.heads = 2, .kv_heads = 2, .head_dim = 20, .sliding_window = 70},
        coded({.heads = 6, .kv_heads = 2})[0], coded({.heads = 6, .kv_heads = 2})[1],
        coded({.heads = 6, .kv_heads = 2, .sliding_window = 37})[2],
        coded({.heads = 2, .kv_heads = 2, .head_dim = 20})[3],
        coded({.heads = 6, .kv_heads = 2})[4],
        coded({.heads = 3, .kv_heads = 1, .head_dim = 20, .sliding_window = 37})[4]}) {
    const std::vector<Text> texts = {Text(shape, tokens, 8)};
    const std::vector<float> whole = in_steps(ops(), shape, texts, {tokens}, 1);
    const std::vector<std::vector<int64_t>> cuts = {{tokens},    {64, 64, 12},
                                                    {1, 99, 40}, {63, 2, 75},
                                                    {139, 1},    std::vector<int64_t>(tokens, 1)};
    for (const std::vector<int64_t>& sizes : cuts)
      for (const int workers : {2, 5}) {
        const std::vector<float> cut = in_steps(ops(), shape, texts, sizes, workers);
        EXPECT_EQ(std::memcmp(cut.data(), whole.data(), whole.size() * sizeof(float)), 0)
            << "Dh " << shape.head_dim << ", window " << shape.sliding_window << ", steps "
            << sizes.size() << ", workers " << workers;
      }
  }
}

TEST_P(AttentionTest, contexts_that_workers_divide_give_the_same_bits) {
  const int64_t tokens = 900;
  for (const Shape& shape :
       {Shape{.heads = 6, .kv_heads = 2}, Shape{.heads = 3, .kv_heads = 1, .sliding_window = 300},
        Shape{.heads = 4, .kv_heads = 2, .head_dim = 40, .type = KvType::kF32},
        coded({.heads = 6, .kv_heads = 2})[0], coded({.heads = 6, .kv_heads = 2})[1],
        coded({.heads = 6, .kv_heads = 2, .sliding_window = 300})[2],
        coded({.heads = 6, .kv_heads = 2})[4],
        coded({.heads = 6, .kv_heads = 2, .sliding_window = 300})[4]}) {
    const std::vector<Text> texts = {Text(shape, tokens, 9)};
    const std::vector<float> whole = in_steps(ops(), shape, texts, {tokens}, 1);
    for (const int workers : {1, 2, 3, 16}) {
      const std::vector<float> cut =
          in_steps(ops(), shape, texts, {511, 1, 1, 254, 1, 1, 130, 1}, workers);
      EXPECT_EQ(std::memcmp(cut.data(), whole.data(), whole.size() * sizeof(float)), 0)
          << "Dh " << shape.head_dim << ", window " << shape.sliding_window << ", workers "
          << workers;
    }
  }
}

TEST_P(AttentionTest, a_query_gives_the_same_bits_alone_and_in_any_batch) {
  std::vector<Shape> shapes = coded({});
  shapes.emplace_back();
  for (const Shape& shape : shapes) {
    const std::vector<Sequence> sequences = {{100, 1}, {31, 31}, {257, 1}, {90, 20}, {64, 1}};
    const std::vector<Text> texts = texts_for(shape, sequences);
    PagedCache cache(shape, contexts_of(sequences), 9);
    write_history(shape, texts, sequences, cache);
    Step together(shape, texts, sequences, cache);
    const std::vector<float> all = together.run(ops(), 3);
    size_t at = 0;
    for (size_t b = 0; b < sequences.size(); ++b) {
      PagedCache own(shape, {sequences[b].context}, 10);
      write_history(shape, {texts[b]}, {sequences[b]}, own);
      Step alone(shape, {texts[b]}, {sequences[b]}, own);
      const std::vector<float>& rows = alone.run(ops(), 1);
      EXPECT_EQ(std::memcmp(rows.data(), all.data() + at, rows.size() * sizeof(float)), 0)
          << "sequence " << b;
      at += rows.size();
    }
    EXPECT_EQ(at, all.size());
  }
}

TEST_P(AttentionTest, a_step_without_rows_and_sequences_without_queries_are_fine) {
  const Shape shape;
  const std::vector<Sequence> sequences = {{20, 0}, {30, 3}, {7, 0}};
  expect_matches_reference(shape, sequences, 2);
  PagedCache cache(shape, {1}, 1);
  Step nothing(shape, {}, {}, cache);
  EXPECT_TRUE(nothing.run(ops(), 2).empty());
}

INSTANTIATE_TEST_SUITE_P(Isas, AttentionTest,
                         testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx),
                         [](const auto& param) { return std::string(isa_name(param.param)); });

}  // namespace
}  // namespace whit::cpu
