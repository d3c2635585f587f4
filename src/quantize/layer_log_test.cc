#include "quantize/layer_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tiny_model.h"

namespace whit {
namespace {

using ::testing::HasSubstr;

class LayerLogTest : public ::testing::Test {
 protected:
  // A log of numbers, one after the other.
  std::string refusal(const std::vector<uint64_t>& numbers, EngineWriter* writer = nullptr) {
    std::vector<uint8_t> bytes(numbers.size() * sizeof(uint64_t));
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    bytes.resize(bytes.size() + (1 << 16));
    try {
      LayerOutput(writer, model_.graph(), nullptr).replay(bytes);
      return "accepted";
    } catch (const Error& error) {
      return error.what();
    }
  }
  uint64_t linear() const {
    for (const Node& node : model_.graph().nodes())
      if (node.op == Op::kLinear)
        return static_cast<uint64_t>(&node - model_.graph().nodes().data());
    return 0;
  }

  testing::ScratchDirectory scratch_;
  Model model_ = Model::open(testing::golden_model("qwen2"));
};

TEST_F(LayerLogTest, sizes_that_no_linear_has_are_refused) {
  constexpr uint64_t kLinear = 1, kInt4 = 3, kInt8 = 4;
  for (const uint64_t group : {uint64_t{0}, ~uint64_t{0}, uint64_t{INT64_MAX}, uint64_t{1} << 63})
    for (const uint64_t zeros : {0, 1})
      EXPECT_THAT(refusal({kLinear, linear(), kInt4, group, 0, zeros}), HasSubstr("group"));
  EXPECT_THAT(refusal({kLinear, linear(), kInt8, 0, 0, 1}), HasSubstr("zero points"));
}

TEST_F(LayerLogTest, what_the_engine_has_no_place_for_is_refused) {
  EngineManifest manifest;
  manifest.scheme = QuantScheme::preset("w8a16", 32);
  for (const LinearDecision& decision : analyse_linears(model_.graph()))
    manifest.linears[module_of(model_.graph().node(decision.node))] = manifest.scheme;
  EngineWriter writer(scratch_.path() / "engine", model_.graph(), manifest);
  constexpr uint64_t kSalient = 4;
  EXPECT_THAT(refusal({kSalient, linear(), 2}, &writer), HasSubstr("salient"));
}

}  // namespace
}  // namespace whit
