// The GPU's rounding errors and searches against the CPU's, and engines made with both. Where there
// is no GPU the reason is printed and the tests are skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/file.h"
#include "quantize/cpu_group_errors.h"
#include "quantize/quadratic_form.h"
#include "quantize/quantize.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::random_tokens;
using testing::ScratchDirectory;
using testing::with_tokenizer;

constexpr double kEps = 0x1p-24;

QuantArgs int4(int64_t group_size, bool symmetric, bool two_level) {
  return {.num_bits = 4,
          .symmetric = symmetric,
          .strategy = QuantStrategy::kGroup,
          .group_size = group_size,
          .two_level = two_level};
}

class CudaGroupErrorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      gpu_ = open_cuda_accelerator(pool_);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  Tensor normal(const Shape& shape, float deviation) {
    Tensor values(DType::kF32, shape);
    std::normal_distribution<float> distribution(0, deviation);
    for (float& value : values.f32()) value = distribution(random_);
    return values;
  }

  // Rows of mixed channels, of very different magnitudes; some weights are zero.
  void make_group(int64_t k, std::initializer_list<int64_t> rows) {
    weights_.clear();
    for (const int64_t n : rows) {
      weights_.push_back(normal({n, k}, 0.05f));
      float* w = weights_.back().data<float>();
      for (int64_t i = 0; i < k; ++i) w[i] = 0;  // a row without a range
      w[k + 1] = 3;
    }
    stats_ = no_sums(0, k);
    const Tensor mix = normal({8, k}, 1);
    for (SplitStats* split : {&stats_.search, &stats_.held_out}) {
      constexpr int64_t kTokens = 60, kSampled = 50;
      split->tokens = split->gram_tokens = kTokens;
      const Tensor shared = normal({kTokens, 8}, 0.5f);
      Tensor x = normal({kTokens, k}, 1);
      for (int64_t t = 0; t < kTokens; ++t) {
        float* row = x.data<float>() + t * k;
        for (int64_t j = 0; j < k; ++j) {
          for (int64_t r = 0; r < 8; ++r)
            row[j] += shared.data<float>()[t * 8 + r] * mix.data<float>()[r * k + j];
          row[j] *= j % 17 == 0 ? 8.0f : 0.5f;
        }
        for (int64_t i = 0; i < k; ++i)
          for (int64_t j = 0; j < k; ++j)
            split->gram.data<float>()[i * k + j] += row[i] * row[j] / kTokens;
      }
      split->sample_rows = kSampled;
      std::copy_n(x.data<float>(), kSampled * k, split->sample.data<float>());
    }
    factors_.resize(static_cast<size_t>(k));
    std::uniform_real_distribution<float> factor(0.3f, 3.0f);
    for (float& value : factors_) value = factor(random_);
  }

  GroupErrorsInput input(const QuantArgs& args) {
    GroupErrorsInput made{.stats = &stats_, .args = args};
    for (const Tensor& w : weights_) made.weights.push_back(&w);
    return made;
  }

  // What no order of summation exceeds: K roundings of Σ|d|·|A|·|d| ≤ ‖d‖²·tr A.
  double tolerance(double squares, Split which) const {
    const SplitStats& split = which == Split::kSearch ? stats_.search : stats_.held_out;
    double trace = 0;
    for (int64_t i = 0; i < stats_.k; ++i) trace += split.gram.data<float>()[i * stats_.k + i];
    return static_cast<double>(stats_.k) * kEps * squares * trace;
  }

  ThreadPool pool_{2};
  Matmul matmul_{pool_, cpu::detected_isa()};
  std::mt19937 random_{7};
  std::unique_ptr<Accelerator> gpu_;
  std::vector<Tensor> weights_;
  InputStats stats_;
  std::vector<float> factors_;
};

const QuantArgs kFormats[] = {int4(128, false, false),
                              int4(64, true, false),
                              int4(32, false, false),
                              int4(128, false, true),
                              int4(128, true, true),
                              {.num_bits = 8},
                              {.num_bits = 8, .type = NumberType::kFloat}};

// With a Gram matrix of ones on the diagonal the form is Σ d²: a single code that rounded to
// another side would show, since sums of N·K positive terms are off by K roundings at most.
TEST_F(CudaGroupErrorsTest, roundings_have_the_cpus_bits) {
  make_group(576, {70, 33});
  for (SplitStats* split : {&stats_.search, &stats_.held_out}) {
    split->gram = Tensor::zeros(DType::kF32, {576, 576});
    for (int64_t i = 0; i < 576; ++i) split->gram.data<float>()[i * 576 + i] = 1;
  }
  for (const QuantArgs& args : kFormats) {
    const auto cpu = cpu_group_errors(input(args), matmul_);
    const auto gpu = gpu_->group_errors(input(args));
    for (size_t linear = 0; linear < 2; ++linear)
      for (const float* s : std::initializer_list<const float*>{nullptr, factors_.data()}) {
        SCOPED_TRACE(fmt::format("{} bits, group {}, symmetric {}, two-level {}, linear {}, s {}",
                                 args.num_bits, args.group_size, args.symmetric, args.two_level,
                                 linear, s != nullptr));
        Tensor clip(DType::kF32, {weights_[linear].dim(0), 576 / 32});
        std::fill(clip.f32().begin(), clip.f32().end(), 0.07f);
        for (const Tensor* bounds :
             {static_cast<const Tensor*>(nullptr), static_cast<const Tensor*>(&clip)}) {
          if (bounds != nullptr && args.group_size != 32) continue;
          cpu->round(linear, s, bounds);
          gpu->round(linear, s, bounds);
          cpu->subtract(linear, s);
          gpu->subtract(linear, s);
          const double want = cpu->quadratic(Split::kSearch, linear);
          EXPECT_NEAR(gpu->quadratic(Split::kSearch, linear), want, 576 * kEps * want);
        }
      }
  }
}

TEST_F(CudaGroupErrorsTest, sums_are_the_cpus) {
  for (const int64_t k : {576, 2192}) {  // one block of columns, and two
    make_group(k, {70, 33});
    for (const QuantArgs& args : {kFormats[0], kFormats[5], kFormats[6]}) {
      GroupErrorsInput given = input(args);
      given.activations = args.type;
      const auto cpu = cpu_group_errors(given, matmul_);
      const auto gpu = gpu_->group_errors(given);
      cpu->set_columns(cholesky_columns(stats_.search.gram));
      gpu->set_columns(cholesky_columns(stats_.search.gram));
      for (size_t linear = 0; linear < 2; ++linear)
        for (const Split split : {Split::kSearch, Split::kHeldOut}) {
          const float* s = split == Split::kSearch ? factors_.data() : nullptr;
          SCOPED_TRACE(fmt::format("K {}, {} bits, linear {}", k, args.num_bits, linear));
          double squares = 0;
          for (const float w : weights_[linear].f32()) squares += static_cast<double>(w) * w;
          EXPECT_NEAR(gpu->energy(split, linear), cpu->energy(split, linear),
                      tolerance(squares, split));
          cpu->round(linear, s, nullptr);
          gpu->round(linear, s, nullptr);
          for (const float fixed : {0.0f, 0.01f}) {
            // Codes are the same; sums of K and of N positive terms.
            const double want = cpu->activation_error(split, linear, s, fixed);
            EXPECT_NEAR(gpu->activation_error(split, linear, s, fixed), want,
                        static_cast<double>(k) * kEps * want * 8);
          }
          cpu->measure_noise(32, s, 0);
          gpu->measure_noise(32, s, 0);
          const double noise = cpu->noise_error(linear);
          EXPECT_NEAR(gpu->noise_error(linear), noise, static_cast<double>(k) * kEps * noise);
          cpu->subtract(linear, s);
          gpu->subtract(linear, s);
          EXPECT_NEAR(gpu->quadratic(split, linear), cpu->quadratic(split, linear),
                      tolerance(squares, split));
          const double estimate = cpu->estimate(linear);
          EXPECT_NEAR(gpu->estimate(linear), estimate,
                      static_cast<double>(k) * kEps * estimate * 8);
        }
      EXPECT_EQ(gpu->max_abs_weight(), cpu->max_abs_weight());
    }
  }
}

TEST_F(CudaGroupErrorsTest, inputs_that_factors_divide_are_divided) {
  make_group(192, {40});
  GroupErrorsInput divided = input(kFormats[2]);
  divided.applied = factors_.data();
  const auto cpu = cpu_group_errors(divided, matmul_);
  const auto gpu = gpu_->group_errors(divided);
  const std::span<const float> a = cpu->gram().f32(), b = gpu->gram().f32();
  for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i], b[i]) << i;
  const double want = cpu->energy(Split::kHeldOut, 0);
  EXPECT_NEAR(gpu->energy(Split::kHeldOut, 0), want, 192 * 8 * kEps * want);
}

// Ranges whose costs lie within a rounding of each other may be chosen otherwise: they must be few,
// and cost the same.
TEST_F(CudaGroupErrorsTest, searches_the_same_bounds) {
  make_group(2096, {70});  // two blocks of columns, the last group short
  const std::vector<float> shares = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f};
  for (const QuantArgs& args : {kFormats[0], kFormats[1], kFormats[2]}) {
    const auto cpu = cpu_group_errors(input(args), matmul_);
    const auto gpu = gpu_->group_errors(input(args));
    const GroupErrors::Bounds want = cpu->search_bounds(0, shares);
    const GroupErrors::Bounds got = gpu->search_bounds(0, shares);
    ASSERT_EQ(want.values.shape(), got.values.shape());
    int64_t different = 0;
    for (int64_t i = 0; i < want.values.size(); ++i)
      different += want.values.data<float>()[i] != got.values.data<float>()[i] ? 1 : 0;
    EXPECT_LE(different, want.values.size() / 100);
    EXPECT_LE(std::abs(want.shrunk - got.shrunk), want.values.size() / 100);
    EXPECT_GT(got.shrunk, 0);
    cpu->round(0, nullptr, &want.values);
    gpu->round(0, nullptr, &got.values);
    cpu->subtract(0, nullptr);
    gpu->subtract(0, nullptr);
    const double cost = cpu->quadratic(Split::kSearch, 0);
    EXPECT_NEAR(gpu->quadratic(Split::kSearch, 0), cost, 1e-3 * cost);
  }
}

TEST_F(CudaGroupErrorsTest, searches_the_same_two_level_scales) {
  make_group(2096, {70});
  const std::vector<float> shares = {1.0f, 0.87f, 0.75f};
  for (const QuantArgs& args : {kFormats[3], kFormats[4]}) {
    const auto want = cpu_group_errors(input(args), matmul_)->search_two_level(0, shares);
    const auto got = gpu_->group_errors(input(args))->search_two_level(0, shares);
    EXPECT_EQ(want.lowest, got.lowest);
    // A step that is chosen otherwise changes its row.
    int64_t steps = 0, scales = 0;
    for (size_t row = 0; row < want.step.size(); ++row) steps += want.step[row] != got.step[row];
    for (size_t at = 0; at < want.scale.size(); ++at) scales += want.scale[at] != got.scale[at];
    EXPECT_LE(steps, 2);
    EXPECT_LE(scales, steps * 17 + std::ssize(want.scale) / 100);
    EXPECT_LE(std::abs(want.shrunk - got.shrunk), scales);
    EXPECT_GT(got.shrunk, 0);
  }
}

// Engines of both backends: where a group's factors are the same, its losses are; where a near tie
// fell otherwise, they are close. An activation that both compute to their rounding may fall on
// either side of a code's border, and changes the mean over some hundred rows by its share.
class CudaEngineTest : public CudaGroupErrorsTest,
                       public ::testing::WithParamInterface<std::pair<const char*, const char*>> {
 protected:
  QuantizeSummary quantize(const Model& model, const CalibrationData& data, Accelerator* gpu,
                           const std::filesystem::path& output) {
    const auto [mode, scheme] = GetParam();
    const Recipe recipe{.mode = mode, .scheme = QuantScheme::preset(scheme, 32), .output = output};
    QuantizeOptions options{.isa = cpu::detected_isa()};
    options.accelerator = gpu;
    return quantize_model(model, {&recipe, 1}, &data, options, pool_).at(0);
  }
};

TEST_P(CudaEngineTest, has_the_losses_of_the_cpus_and_the_same_bytes_each_time) {
  ScratchDirectory scratch;
  for (const char* name : {"llama_untied", "mistral", "qwen2"}) {
    SCOPED_TRACE(name);
    const Model model = Model::open(with_tokenizer(scratch, name));
    const CalibrationData data = random_tokens(model, 32, 24, 5);
    const auto cpu = quantize(model, data, nullptr, scratch.path() / "cpu");
    const auto gpu = quantize(model, data, gpu_.get(), scratch.path() / "gpu");
    quantize(model, data, gpu_.get(), scratch.path() / "again");
    ASSERT_EQ(cpu.reports.size(), gpu.reports.size());
    for (size_t i = 0; i < cpu.reports.size(); ++i) {
      const GroupReport &a = cpu.reports[i], &b = gpu.reports[i];
      SCOPED_TRACE(a.name);
      EXPECT_NEAR(b.rtn_error, a.rtn_error,
                  (std::string(GetParam().second).ends_with("8") ? 0.01 : 1e-3) * a.rtn_error);
      EXPECT_NEAR(b.error, a.error, (a.exponent == b.exponent ? 0.01 : 0.05) * a.error);
    }
    const auto weights = [&](const char* engine) {
      return read_file(scratch.path() / engine / "weights.safetensors");
    };
    EXPECT_TRUE(weights("gpu") == weights("again"));
    EXPECT_EQ(weights("gpu").size(), weights("cpu").size());
    const auto made_on = [&](const char* engine) {
      return EngineDirectory(scratch.path() / engine).manifest().quantized_on;
    };
    EXPECT_EQ(made_on("cpu"), Json::object({{"backend", "cpu"}}));
    EXPECT_EQ(made_on("gpu"), Json::object({{"backend", "cuda"}, {"device", gpu_->description()}}));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Modes, CudaEngineTest,
    ::testing::Values(std::pair{"awq", "w4a16"}, std::pair{"awq", "w4a8"}, std::pair{"awq", "w8a8"},
                      std::pair{"smoothquant", "w8a8"}, std::pair{"gptq", "w4a16"},
                      std::pair{"awq-gptq", "w4a8"}, std::pair{"rtn", "w4a16"},
                      std::pair{"awq", "fp8"}, std::pair{"smoothquant", "fp8"},
                      std::pair{"awq", "w4afp8"}),
    [](const auto& each) {
      std::string name = fmt::format("{}_{}", each.param.first, each.param.second);
      std::replace(name.begin(), name.end(), '-', '_');
      return name;
    });

TEST_F(CudaGroupErrorsTest, auto_mode_says_that_it_needs_the_cpu) {
  ScratchDirectory scratch;
  const Model model = Model::open(with_tokenizer(scratch, "qwen2"));
  const CalibrationData data = random_tokens(model, 4, 24, 5);
  const Recipe recipe{.mode = "auto",
                      .scheme = QuantScheme::preset("w4a16", 32),
                      .output = scratch.path() / "engine"};
  QuantizeOptions options{.isa = cpu::detected_isa()};
  options.accelerator = gpu_.get();
  try {
    quantize_model(model, {&recipe, 1}, &data, options, pool_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("--backend cpu"));
  }
}

}  // namespace
}  // namespace whit
