#include "engine/weight_packer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>

namespace whit {
namespace {

QuantizedTensor random_weight(WeightFormat format, int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n * k);
  for (float& value : values) value = normal(random);
  QuantizedTensor weight =
      make_quantized(format, n, k, format == WeightFormat::kInt4Group ? 32 : k, false);
  quantize_rows_rtn(values.data(), 0, n, nullptr, weight);
  return weight;
}

class WeightPackerTest : public ::testing::TestWithParam<int> {};

TEST_P(WeightPackerTest, packs_what_pack_linear_packs_and_tells_when_each_is_done) {
  ThreadPool pool(GetParam());
  const cpu::Isa isa = cpu::detected_isa();
  std::vector<QuantizedTensor> weights;
  for (int i = 0; i < 6; ++i)
    weights.push_back(random_weight(
        i % 2 == 0 ? WeightFormat::kInt4Group : WeightFormat::kInt8Channel, 100 + 700 * i, 320, i));
  WeightPacker packer;
  std::vector<std::atomic<int>> done(weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    const WeightView view = weights[i].view();
    EXPECT_EQ(packer.add(cpu::linear_kernel(view.format, cpu::Activation::kInt8, isa), {view, view},
                         "", [&done, i] { ++done[i]; }),
              static_cast<int>(i));
  }
  const std::vector<cpu::PackedWeight> packed = std::move(packer).pack(pool);
  ASSERT_EQ(packed.size(), weights.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    EXPECT_EQ(done[i], 1);
    const WeightView parts[] = {weights[i].view(), weights[i].view()};
    const cpu::PackedWeight alone = cpu::pack_linear(*packed[i].kernel, parts, pool);
    ASSERT_EQ(packed[i].n, alone.n);
    ASSERT_EQ(packed[i].data.bytes(), alone.data.bytes());
    EXPECT_EQ(std::memcmp(packed[i].data.as<char>(), alone.data.as<char>(), alone.data.bytes()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(threads, WeightPackerTest, ::testing::Values(1, 2, 3));

TEST(WeightPackerTest, refuses_what_no_kernel_packs_before_any_memory_is_taken) {
  const QuantizedTensor a = random_weight(WeightFormat::kInt8Channel, 8, 64, 1);
  const QuantizedTensor b = random_weight(WeightFormat::kInt8Channel, 8, 96, 2);
  WeightPacker packer;
  EXPECT_THROW(packer.add(cpu::linear_kernel(WeightFormat::kInt8Channel, cpu::Activation::kInt8,
                                             cpu::Isa::kPortable),
                          {a.view(), b.view()}, ""),
               Error);
}

TEST(WeightPackerTest, packs_nothing_where_nothing_was_added) {
  ThreadPool pool(2);
  EXPECT_TRUE(WeightPacker().pack(pool).empty());
}

}  // namespace
}  // namespace whit
