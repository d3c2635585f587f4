// Tokens drawn on the GPU against the host's sampler: the same, from the same logits.
// Where there is no GPU the reason is printed and the tests are skipped.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/checked.h"
#include "base/error.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/small_ops.h"
#include "runtime/sampler.h"

namespace whit {
namespace {

class CudaSampling : public testing::Test {
 protected:
  void SetUp() override {
    try {
      device_ = cuda::open_device();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }

  template <typename T>
  cuda::DeviceBuffer copy(const std::vector<T>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
    cuda::DeviceBuffer buffer(*device_, std::max<int64_t>(bytes, 16), "a test");
    if (bytes > 0) device_->upload_and_wait(buffer.as<void>(), values.data(), bytes);
    return buffer;
  }

  // The tokens of rows [rows, vocab], and the logits afterwards.
  std::vector<int32_t> draw(std::vector<float>& logits, int64_t vocab,
                            const std::vector<RowDraw>& rows) {
    std::vector<cuda::SampleDraw> draws;
    std::vector<LogitChange> changes;
    std::vector<uint64_t> allowed;
    int32_t masks = 0;
    for (const RowDraw& row : rows) {
      draws.push_back({.random = row.random,
                       .inverse_temperature = row.temperature > 0 ? 1 / row.temperature : 0,
                       .top_p = row.top_p,
                       .min_p = row.min_p,
                       .top_k = row.top_k,
                       .first_change = static_cast<int32_t>(changes.size()),
                       .change_count = static_cast<int32_t>(row.changes.size()),
                       .allowed = row.allowed.empty() ? -1 : masks++});
      changes.insert(changes.end(), row.changes.begin(), row.changes.end());
      allowed.insert(allowed.end(), row.allowed.begin(), row.allowed.end());
    }
    const auto device_logits = copy(logits), device_draws = copy(draws),
               device_changes = copy(changes), device_allowed = copy(allowed),
               unchanged = copy(std::vector<float>(changes.size())),
               tokens = copy(std::vector<int32_t>(rows.size(), -7));
    cuda::small_ops().sample({.logits = device_logits.as<float>(),
                              .rows = std::ssize(rows),
                              .vocab = vocab,
                              .draws = device_draws.as<cuda::SampleDraw>(),
                              .changes = device_changes.as<LogitChange>(),
                              .unchanged = unchanged.as<float>(),
                              .allowed = device_allowed.as<uint32_t>(),
                              .tokens = tokens.as<int32_t>()},
                             device_->stream());
    cuda::HostBuffer host(*device_, tokens.bytes());
    cuda::HostBuffer host_logits(*device_, device_logits.bytes());
    device_->download(host.as<void>(), tokens.as<void>(), std::ssize(rows) * 4);
    device_->download(host_logits.as<void>(), device_logits.as<void>(), std::ssize(logits) * 4);
    device_->wait();
    std::copy_n(host_logits.as<float>(), logits.size(), logits.begin());
    return {host.as<int32_t>(), host.as<int32_t>() + rows.size()};
  }

  // Rows of one vocabulary by `options`, drawn `draws` times from logits like a model's.
  void expect_the_hosts_tokens(int64_t vocab, const SamplerOptions& options, int draws) {
    SCOPED_TRACE(testing::Message()
                 << "vocabulary " << vocab << ", temperature " << options.temperature << ", top-k "
                 << options.top_k << ", top-p " << options.top_p << ", min-p " << options.min_p);
    std::mt19937 random(static_cast<uint32_t>(vocab + options.top_k));
    std::normal_distribution<float> normal(0, 3);
    std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(vocab) - 1);
    std::vector<float> logits(vocab * draws);
    // Equals too: values on a grid of 1/16.
    for (float& logit : logits)
      logit = std::round(16 * normal(random)) / 16 + normal(random) * 1e-3f;
    for (int64_t i = 0; i < std::ssize(logits); i += 3) logits[i] = std::round(logits[i] * 16) / 16;
    std::vector<int32_t> prompt(50), output(200);
    for (int32_t& id : prompt) id = any(random);
    for (int32_t& id : output) id = any(random) % 40;

    std::vector<RowDraw> rows;
    std::vector<int32_t> expected;
    SamplerWorkspace workspace;
    for (int i = 0; i < draws; ++i) {
      SamplerOptions seeded = options;
      seeded.seed = 100 + i;
      Sampler sampler(seeded, vocab);
      rows.push_back(sampler.next_draw(prompt, output, workspace));
      std::vector<float> row(logits.begin() + i * vocab, logits.begin() + (i + 1) * vocab);
      if (i % 2 == 1) {
        std::vector<uint64_t>& allowed = rows.back().allowed;
        allowed.resize(ceil_div(vocab, 64));
        for (uint64_t& word : allowed) word = random() | uint64_t{random()} << 32;
        for (int64_t id = 0; id < vocab; ++id)
          if ((allowed[id / 64] >> (id % 64) & 1) == 0)
            row[id] = -std::numeric_limits<float>::infinity();
      }
      expected.push_back(sampler.sample(row, prompt, output, workspace).token);
    }
    EXPECT_EQ(draw(logits, vocab, rows), expected);
  }

  std::unique_ptr<cuda::Device> device_;
};

TEST_F(CudaSampling, draws_the_hosts_tokens) {
  for (const int64_t vocab : {33, 1000, 49152, 128256})
    for (const SamplerOptions& options : {
             SamplerOptions{.temperature = 0},
             SamplerOptions{.temperature = 0, .repetition_penalty = 1.3f},
             SamplerOptions{.temperature = 1},
             SamplerOptions{.temperature = 0.6f, .top_k = 5},
             SamplerOptions{.temperature = 0.9f, .top_k = 40, .top_p = 0.95f},
             SamplerOptions{.temperature = 1.5f, .top_p = 0.9f},
             SamplerOptions{.temperature = 1, .top_p = 0.01f},
             SamplerOptions{.temperature = 1, .min_p = 0.05f},
             SamplerOptions{.temperature = 0.8f,
             .top_k = 100,
             .top_p = 0.9f,
             .min_p = 0.01f,
             .repetition_penalty = 1.2f,
             .presence_penalty = 0.5f,
             .frequency_penalty = 0.3f,
             .logit_bias = {{3, 2.5f}, {7, -1.0f}}},
         })
      expect_the_hosts_tokens(vocab, options, 24);
}

TEST_F(CudaSampling, leaves_to_the_host_what_it_cannot_decide) {
  constexpr int64_t kVocab = 5000;
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> logits(5 * kVocab, 1.0f);
  // Nothing to draw from, an infinity, and more equals than the kernel sorts; NaN is passed over.
  std::fill_n(logits.begin(), kVocab, std::nanf(""));
  logits[kVocab + 17] = infinity;
  logits[3 * kVocab + 4] = std::nanf("");
  logits[3 * kVocab + 5] = 2.0f;
  std::vector<RowDraw> rows(5);
  for (RowDraw& row : rows) row = {.temperature = 1, .top_p = 0.5f, .random = 1};
  rows[2].changes = {{.token = 3, .repetition = 1, .penalty = 0.125f, .bias = 0}};
  rows[3].temperature = 0;
  rows[4].top_p = 1;
  rows[4].random = uint64_t{1} << 63;
  const std::vector<float> before = logits;
  const std::vector<int32_t> tokens = draw(logits, kVocab, rows);
  EXPECT_EQ(tokens, (std::vector<int32_t>{cuda::kNoToken, cuda::kUndecidedToken,
                                          cuda::kUndecidedToken, 5, kVocab / 2}));
  EXPECT_TRUE(std::equal(logits.begin() + 2 * kVocab, logits.begin() + 3 * kVocab,
                         before.begin() + 2 * kVocab))
      << "an undecided row is as it was";
}

}  // namespace
}  // namespace whit
