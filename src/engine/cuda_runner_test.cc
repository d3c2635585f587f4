// The CUDA backend against the CPU's, on tiny models of each architecture and at every scheme.
// Where there is no GPU the reason is printed and the tests are skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "engine/executor.h"
#include "engine/model.h"
#include "kernels/cuda/device.h"
#include "tiny_model.h"

namespace whit {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

// Empty where a GPU can be used, else why not.
const std::string& no_gpu() {
  static const std::string kReason = [] {
    try {
      cuda::open_device();
      return std::string();
    } catch (const Error& error) {
      return std::string(error.what());
    }
  }();
  return kReason;
}

// Behind a scheme's name: its weights, with activations in floating point.
constexpr std::string_view kExact = " exact";

// The model's weights rounded to a scheme where it can be, int4 in groups of 32; and where `noise`
// is not zero each weight off by up to half an ulp of bf16, in floating point.
WeightProvider quantized(const Model& model, const std::string& name, uint32_t noise = 0) {
  const bool exact = name.ends_with(kExact);
  const QuantScheme preset =
      QuantScheme::preset(exact ? name.substr(0, name.size() - kExact.size()) : name, 32);
  std::map<std::string, bool> quantize;
  for (const LinearDecision& decision : analyse_linears(model.graph()))
    quantize[model.graph().node(decision.node).name] = decision.quantize;
  WeightProvider provider = model.weights();
  provider.linear = [&model, preset, exact, quantize, noise](const Node& node) {
    LinearWeight weight = model.weights().linear(node);
    const auto found = quantize.find(node.name);
    Tensor values(DType::kF32, {node.n, node.k});
    dequantize_rows(weight.view, 0, node.n, values.data<float>());
    if (preset.weights && found != quantize.end() && found->second) {
      auto rounded = std::make_shared<QuantizedTensor>(
          make_quantized(weight_format(preset), node.n, node.k, preset.weights->group_size,
                         preset.weights->symmetric));
      quantize_rows_rtn(values.data<float>(), 0, node.n, nullptr, *rounded);
      weight.view = rounded->view();
      weight.activation = exact ? cpu::Activation::kFloat : activation_of(preset);
      weight.owner = rounded;
      weight.packed = nullptr;
      if (noise != 0) dequantize_rows(weight.view, 0, node.n, values.data<float>());
    }
    if (noise == 0) return weight;
    std::mt19937 random(noise);
    std::uniform_real_distribution<float> error(-0x1p-9f, 0x1p-9f);
    for (float& value : values.f32()) value *= 1 + error(random);
    auto owner = std::make_shared<Tensor>(std::move(values));
    weight.view = {
        .format = WeightFormat::kF32, .n = node.n, .k = node.k, .data = owner->data<float>()};
    weight.activation = cpu::Activation::kFloat;
    weight.owner = owner;
    weight.packed = nullptr;
    return weight;
  };
  return provider;
}

constexpr int64_t kContext = 320;

// One model on one backend, with a cache of some sequences.
class Runner {
 public:
  Runner(const Model& model, const std::string& scheme, Backend backend, ThreadPool& pool,
         int64_t sequences = 1, const KvFormat& kv = DType::kF32, uint32_t noise = 0)
      : executor_(model.config(), model.graph(), quantized(model, scheme, noise),
                  {.max_tokens = kContext,
                   .max_context = kContext,
                   .max_logit_rows = kContext,
                   .isa = cpu::detected_isa(),
                   .backend = backend},
                  pool),
        cache_(executor_.make_cache(sequences, kContext, kv)),
        lengths_(sequences) {}

  // Appends tokens to each sequence; logits of all of them, sequence after sequence.
  std::vector<float> feed(const std::vector<std::vector<int32_t>>& tokens) {
    step(tokens);
    const int64_t count = rows_;
    std::vector<int32_t> rows(count);
    for (int64_t i = 0; i < count; ++i) rows[i] = static_cast<int32_t>(i);
    const float* logits = executor_.logits(rows);
    return {logits, logits + count * executor_.config().vocab_size};
  }
  void step(const std::vector<std::vector<int32_t>>& tokens) {
    std::vector<int32_t> ids;
    std::vector<int64_t> counts;
    for (const auto& each : tokens) {
      ids.insert(ids.end(), each.begin(), each.end());
      counts.push_back(std::ssize(each));
    }
    const ContiguousBatch batch(lengths_, counts, cache_.page_tokens());
    executor_.step(ids, batch.view(), cache_);
    for (size_t b = 0; b < counts.size(); ++b) lengths_[b] += counts[b];
    rows_ = std::ssize(ids);
  }
  Executor& executor() { return executor_; }

 private:
  Executor executor_;
  KvCache cache_;
  std::vector<int64_t> lengths_;
  int64_t rows_ = 0;
};

std::vector<int32_t> random_ids(const Model& model, int64_t count, uint32_t seed) {
  return testing::random_tokens(model, 1, count, seed).ids;
}

double norm_of_difference(std::span<const float> a, std::span<const float> b) {
  double squares = 0;
  for (size_t i = 0; i < b.size(); ++i)
    squares += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(squares);
}

TEST(CudaRunner, says_what_is_missing_and_offers_the_cpu) {
  if (no_gpu().empty()) GTEST_SKIP() << "there is a GPU";
  const Model model = Model::open(testing::golden_model("qwen2"));
  ThreadPool pool(1);
  try {
    Runner runner(model, "bf16", Backend::kCuda, pool);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("--backend cpu"));
    EXPECT_THAT(error.what(), AnyOf(HasSubstr("built without CUDA"), HasSubstr("no NVIDIA GPU"),
                                    HasSubstr("driver is too old")));
  }
}

TEST(CudaRunner, fp8_keys_and_values_are_refused_on_a_cpu) {
  const Model model = Model::open(testing::golden_model("qwen2"));
  ThreadPool pool(1);
  try {
    Runner runner(model, "bf16", Backend::kCpu, pool, 1, KvFormat(KvType::kFp8));
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
    EXPECT_THAT(error.what(), HasSubstr("--backend cuda"));
  }
}

struct Case {
  const char* model;
  const char* scheme;
};
void PrintTo(const Case& test, std::ostream* out) { *out << test.model << " " << test.scheme; }

class CudaModels : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (!no_gpu().empty()) GTEST_SKIP() << no_gpu();
  }
  const Model model_ = Model::open(testing::golden_model(GetParam().model));
  ThreadPool pool_{2};
};

// What a model of this kind makes of roundings is measured, on the CPU: each weight off by up to
// half an ulp of bf16 moves the logits of a feed by e. The GPU rounds at about thirteen places a
// layer where that rounds at four (weights, inputs and outputs of four products, rotated queries
// and keys, probabilities), independently, so by √(13/4)·e in the mean; three standard deviations
// are 5.4·e. Int8 inputs are rounded to steps of 2⁻⁸ of a row's largest value, and codes that fall
// on the other side of a border differ by a step: 4 bits less than bf16 keeps of a value a quarter
// of it. e4m3 has steps of up to 2⁻³ of a value where bf16 has 2⁻⁸: of values that are off by 2⁻⁹
// one in 64 comes to the other side, which in the mean square is 2⁻⁶ of the value, twice int8's.
TEST_P(CudaModels, logits_are_those_of_the_cpu) {
  const std::string scheme = GetParam().scheme;
  Runner cpu(model_, scheme, Backend::kCpu, pool_);
  Runner gpu(model_, scheme, Backend::kCuda, pool_);
  constexpr uint32_t kSeeds = 4;
  std::vector<std::unique_ptr<Runner>> noisy;
  std::unique_ptr<Runner> exact;  // in floating point, what the noisy ones are compared with
  const cpu::Activation activation = activation_of(QuantScheme::preset(scheme));
  if (activation != cpu::Activation::kFloat)
    exact = std::make_unique<Runner>(model_, scheme + std::string(kExact), Backend::kCpu, pool_);
  for (uint32_t seed = 1; seed <= kSeeds; ++seed)
    noisy.push_back(
        std::make_unique<Runner>(model_, scheme, Backend::kCpu, pool_, 1, DType::kF32, seed));
  const double factor = 3 * std::sqrt(13.0 / 4) *
                        (activation == cpu::Activation::kInt8  ? 8
                         : activation == cpu::Activation::kFp8 ? 16
                                                               : 1);
  std::vector<std::vector<int32_t>> feeds{random_ids(model_, 37, 1)};
  for (const int32_t id : random_ids(model_, 6, 2)) feeds.push_back({id});
  feeds.push_back(random_ids(model_, 150, 3));  // more than a chunk of keys
  for (const std::vector<int32_t>& feed : feeds) {
    const std::vector<float> expected = cpu.feed({feed});
    const std::vector<float> unrounded = exact ? exact->feed({feed}) : expected;
    double squares = 0;
    for (const auto& each : noisy)
      squares += std::pow(norm_of_difference(each->feed({feed}), unrounded), 2) / kSeeds;
    EXPECT_LE(norm_of_difference(gpu.feed({feed}), expected), factor * std::sqrt(squares))
        << feed.size() << " tokens";
  }
}

TEST_P(CudaModels, likeliest_tokens_are_those_of_the_logits) {
  Runner gpu(model_, GetParam().scheme, Backend::kCuda, pool_);
  const int64_t vocab = model_.config().vocab_size;
  const std::vector<int32_t> prompt = random_ids(model_, 9, 4);
  const std::vector<float> logits = gpu.feed({prompt});
  std::vector<int32_t> rows(9), ids(9);
  for (int32_t i = 0; i < 9; ++i) rows[i] = i;
  gpu.executor().argmax(rows, ids);
  for (int64_t i = 0; i < 9; ++i) {
    const auto begin = logits.begin() + i * vocab;
    EXPECT_EQ(ids[i], std::max_element(begin, begin + vocab) - begin) << "row " << i;
  }
  // A decoding step's graph: the first run, the recorded one, and the logits of the same step.
  for (int i = 0; i < 4; ++i) {
    gpu.step({{ids[8]}});
    const int32_t row[] = {0};
    gpu.executor().argmax(row, std::span(ids).last(1));
    const float* again = gpu.executor().logits(row);
    EXPECT_EQ(ids[8], std::max_element(again, again + vocab) - again) << "step " << i;
  }
}

// The rule is tested in runtime/cuda_sampling_test.cc: here that rows, changes and graphs are
// right.
TEST_P(CudaModels, drawn_tokens_are_those_of_the_logits) {
  Runner gpu(model_, GetParam().scheme, Backend::kCuda, pool_);
  ASSERT_TRUE(gpu.executor().samples());
  const int64_t vocab = model_.config().vocab_size;
  gpu.feed({random_ids(model_, 9, 4)});
  std::vector<int32_t> ids(3);
  for (int32_t i = 0; i < 6; ++i) {
    if (i > 0) gpu.step({{ids[0]}});
    const int32_t rows[] = {i > 0 ? 0 : 2, i > 0 ? 0 : 8, i > 0 ? 0 : 8};
    const auto likeliest = [&](int32_t row, int32_t without, int32_t instead) {
      const float* logits = gpu.executor().logits(std::span(&row, 1));
      std::vector<float> changed(logits, logits + vocab);
      if (without >= 0) changed[without] = -INFINITY;
      if (instead >= 0) changed[instead] += 1000;
      return static_cast<int32_t>(std::ranges::max_element(changed) - changed.begin());
    };
    // The first steps' logits are asked for afterwards, so that a graph makes head and tokens.
    std::vector<RowDraw> draws(3, {.temperature = 1, .top_k = 1, .random = ~uint64_t{0}});
    const int32_t other = 7 * i % static_cast<int32_t>(vocab);
    draws[1].changes = {{.token = other, .bias = 1000}};
    draws[2].allowed.assign(ceil_div(vocab, 64), ~uint64_t{0});
    draws[2].allowed[other / 64] &= ~(uint64_t{1} << (other % 64));
    const size_t count = i % 2 == 0 ? 3 : 1;
    gpu.executor().sample(std::span(rows).first(count), std::span(draws).first(count),
                          std::span(ids).first(count));
    EXPECT_EQ(ids[0], likeliest(rows[0], -1, -1)) << "step " << i;
    if (count == 1) continue;
    EXPECT_EQ(ids[1], likeliest(rows[1], -1, other)) << "step " << i;
    EXPECT_EQ(ids[2], likeliest(rows[2], other, -1)) << "step " << i;
  }
}

// Low-bit products keep the order of their sums whatever M is (kernels/cuda/linear.h); cuBLASLt's
// do not, so that bf16 and fp8 are not held to it.
TEST_P(CudaModels, result_does_not_depend_on_batch_or_chunks) {
  const std::string_view scheme = GetParam().scheme;
  if (scheme == "bf16" || scheme == "fp8") GTEST_SKIP() << "cuBLASLt chooses by M";
  const std::vector<int32_t> ids = random_ids(model_, 200, 5);
  Runner whole(model_, GetParam().scheme, Backend::kCuda, pool_);
  // Norms, products and attention of the low-bit layers are exact in this; the head is not low-bit,
  // so what is compared is the last hidden state.
  const auto last_hidden = [&](Runner& runner, int64_t row) {
    const int64_t width = model_.config().hidden_size;
    const float* hidden = runner.executor().hidden() + row * width;
    return std::vector<float>(hidden, hidden + width);
  };
  whole.step({ids});
  const std::vector<float> expected = last_hidden(whole, 199);

  Runner pieces(model_, GetParam().scheme, Backend::kCuda, pool_);
  for (size_t begin = 0; begin < 200;) {
    const size_t count = std::min<size_t>(begin < 130 ? 1 + begin / 2 : 1, 200 - begin);
    pieces.step({std::vector<int32_t>(ids.begin() + begin, ids.begin() + begin + count)});
    begin += count;
  }
  EXPECT_EQ(last_hidden(pieces, 0), expected) << "in pieces";

  Runner batch(model_, GetParam().scheme, Backend::kCuda, pool_, 5);
  const auto other = [&](uint32_t seed, int64_t count) { return random_ids(model_, count, seed); };
  batch.step({other(6, 3), other(7, 50), std::vector<int32_t>(ids.begin(), ids.begin() + 150),
              other(8, 1), other(9, 20)});
  for (size_t i = 150; i < 200; ++i)
    batch.step({other(10, 1), other(11, 1), {ids[i]}, other(12, 1), other(13, 1)});
  EXPECT_EQ(last_hidden(batch, 2), expected) << "among others";
}

// Keys and values are rounded to steps of 1/127 of a head's largest value. Of a row of which that
// is four standard deviations the error is 4 / (127·√12) = 0.9 % of what attention adds, of keys
// and values each, in each of up to three layers: 2.2 %; and up to four times that where the
// residual stream is shorter than what was added to it.
// e4m3 has three bits behind a value's first: its error is uniform within 2⁻⁴ of the value, 2.6 %
// in the mean, three times as much. Activations of e4m3 that this moves over a border differ by a
// step of up to 2⁻³, which at most doubles it.
TEST_P(CudaModels, caches_of_8_bits_change_little) {
  Runner gpu(model_, GetParam().scheme, Backend::kCuda, pool_);
  Runner int8(model_, GetParam().scheme, Backend::kCuda, pool_, 1, KvFormat(KvType::kInt8));
  Runner fp8(model_, GetParam().scheme, Backend::kCuda, pool_, 1, KvFormat(KvType::kFp8));
  const double coarse =
      activation_of(QuantScheme::preset(GetParam().scheme)) == cpu::Activation::kFp8 ? 2 : 1;
  std::vector<std::vector<int32_t>> feeds{random_ids(model_, 150, 14), {5}, {6}};
  for (const std::vector<int32_t>& feed : feeds) {
    const std::vector<float> expected = gpu.feed({feed});
    const double norm = norm_of_difference(expected, std::vector<float>(expected.size()));
    EXPECT_LE(norm_of_difference(int8.feed({feed}), expected), coarse * 0.09 * norm) << feed.size();
    EXPECT_LE(norm_of_difference(fp8.feed({feed}), expected), coarse * 0.27 * norm) << feed.size();
  }
}

// Forty sequences of three chunks make attention divide them among nearly all places for blocks
// that a GPU has, and its blocks wait for each other: two engines' would do so for ever if they ran
// side by side.
TEST(CudaRunner, two_engines_in_one_process_do_not_stop_each_other) {
  if (!no_gpu().empty()) GTEST_SKIP() << no_gpu();
  constexpr int64_t kSequences = 40, kPrompt = 270, kSteps = 40;
  const Model model = Model::open(testing::golden_model("qwen2"));
  const auto tokens_of = [&](std::vector<int32_t>& tokens) {
    ThreadPool pool(1);
    Runner gpu(model, "w4a8", Backend::kCuda, pool, kSequences);
    std::vector<int32_t> rows(kSequences), ids(kSequences);
    for (int32_t b = 0; b < kSequences; ++b) {
      rows[b] = b;
      std::vector<std::vector<int32_t>> prompt(kSequences);
      prompt[b] = random_ids(model, kPrompt, static_cast<uint32_t>(b));
      ids[b] = prompt[b].back();
      gpu.step(prompt);
    }
    for (int64_t step = 0; step < kSteps; ++step) {
      std::vector<std::vector<int32_t>> feed;
      for (const int32_t id : ids) feed.push_back({id});
      gpu.step(feed);
      gpu.executor().argmax(rows, ids);
      tokens.insert(tokens.end(), ids.begin(), ids.end());
    }
  };
  std::vector<int32_t> alone, first, second;
  tokens_of(alone);
  std::thread other([&] { tokens_of(second); });
  tokens_of(first);
  other.join();
  EXPECT_EQ(first, alone);
  EXPECT_EQ(second, alone);
}

INSTANTIATE_TEST_SUITE_P(
    Golden, CudaModels,
    ::testing::Values(Case{"llama_rope_linear", "bf16"}, Case{"llama_rope_llama3", "bf16"},
                      Case{"llama_untied", "bf16"}, Case{"mistral", "bf16"},
                      Case{"mistral_window", "bf16"}, Case{"qwen2", "bf16"},
                      Case{"llama_untied", "w4a16"}, Case{"mistral_window", "w4a16"},
                      Case{"llama_untied", "w4a8"}, Case{"qwen2", "w4a8"},
                      Case{"llama_rope_llama3", "w8a8"}, Case{"mistral", "w8a8"},
                      Case{"qwen2", "w8a16"}, Case{"llama_untied", "fp8"}, Case{"qwen2", "fp8"},
                      Case{"mistral", "w4afp8"}, Case{"qwen2", "w4afp8"}));

}  // namespace
}  // namespace whit
