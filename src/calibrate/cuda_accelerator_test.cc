// The GPU's layer pass and group errors against the CPU's. Where there is no GPU the reason is
// printed and the tests are skipped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "calibrate/calibrator.h"
#include "kernels/cuda/device.h"
#include "tiny_model.h"

namespace whit {
namespace {

using testing::golden_model;
using testing::random_tokens;

constexpr double kEps = 0x1p-24;

std::unique_ptr<Accelerator> open_or_skip(ThreadPool& pool, std::string& why) {
  try {
    return open_cuda_accelerator(pool);
  } catch (const Error& error) {
    why = error.what();
    return nullptr;
  }
}

double norm(std::span<const float> a) {
  double sum = 0;
  for (const float x : a) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

double distance(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    sum += d * d;
  }
  return std::sqrt(sum);
}

class CudaAcceleratorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    gpu_ = open_or_skip(pool_, why);
    if (gpu_ == nullptr) GTEST_SKIP() << why;
  }

  ThreadPool pool_{2};
  std::unique_ptr<Accelerator> gpu_;
};

class CudaLayerPassTest : public CudaAcceleratorTest,
                          public ::testing::WithParamInterface<const char*> {};

// An activation is the end of at most seven products of K terms, each off by no more than K
// roundings of its terms; across a row such errors are independent, hence K against √K · √7, and
// sums over T tokens add T roundings that are as independent.
TEST_P(CudaLayerPassTest, sums_what_the_cpu_sums) {
  const Model model = Model::open(golden_model(GetParam()));
  // Lengths that fill no block of attention, windows of several sequences, one held out.
  const CalibrationData data = random_tokens(model, 40, 75, 5);
  LayerStream exact(model.config(), model.graph(), model.weights(), data, cpu::detected_isa(),
                    pool_);
  LayerStream got(model.config(), model.graph(), model.weights(), data, cpu::detected_isa(), pool_,
                  gpu_.get());
  for (int layer = 0; layer < model.graph().layers(); ++layer) {
    const auto want = exact.observe(layer, model.weights(), LayerPass::Advance::kYes);
    const auto have = got.observe(layer, model.weights(), LayerPass::Advance::kYes);
    ASSERT_EQ(want.size(), have.size());
    for (size_t i = 0; i < want.size(); ++i) {
      SCOPED_TRACE(fmt::format("{} layer {} input {}", GetParam(), layer, i));
      const InputStats &a = want[i], &b = have[i];
      const double tolerance = 8.0 * (layer + 1) * static_cast<double>(a.k) * kEps;
      EXPECT_EQ(a.value, b.value);
      EXPECT_LE(distance(a.mean_abs.f32(), b.mean_abs.f32()), tolerance * norm(a.mean_abs.f32()));
      EXPECT_LE(distance(a.max_abs.f32(), b.max_abs.f32()), tolerance * norm(a.max_abs.f32()));
      for (const auto split : {&InputStats::search, &InputStats::held_out}) {
        const SplitStats &x = a.*split, &y = b.*split;
        EXPECT_EQ(x.tokens, y.tokens);
        EXPECT_EQ(x.gram_tokens, y.gram_tokens);
        ASSERT_EQ(x.sample_rows, y.sample_rows);
        const auto rows = static_cast<size_t>(x.sample_rows * a.k);
        EXPECT_LE(distance(x.sample.f32().first(rows), y.sample.f32().first(rows)),
                  tolerance * norm(x.sample.f32().first(rows)));
        EXPECT_LE(distance(x.gram.f32(), y.gram.f32()), 2 * tolerance * norm(x.gram.f32()));
      }
    }
    const Tensor &x = *exact.state()[0], &y = *got.state()[0];
    EXPECT_LE(distance(x.f32(), y.f32()),
              8.0 * (layer + 1) * static_cast<double>(x.dim(1)) * kEps * norm(x.f32()));
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaLayerPassTest,
                         ::testing::Values("llama_untied", "llama_rope_llama3", "mistral",
                                           "mistral_window", "qwen2"),
                         [](const auto& each) { return std::string(each.param); });

TEST_F(CudaAcceleratorTest, refuses_weights_of_int8_activations) {
  const Model model = Model::open(golden_model("qwen2"));
  const CalibrationData data = random_tokens(model, 2, 16, 5);
  LayerStream stream(model.config(), model.graph(), model.weights(), data, cpu::detected_isa(),
                     pool_, gpu_.get());
  WeightProvider weights = model.weights();
  weights.linear = [&model](const Node& node) {
    LinearWeight weight = model.weights().linear(node);
    weight.activation = cpu::Activation::kInt8;
    return weight;
  };
  EXPECT_THROW(stream.observe(0, weights, LayerPass::Advance::kNo), Error);
}

}  // namespace
}  // namespace whit
