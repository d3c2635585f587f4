#include "api/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace whit {
namespace {

using ::testing::HasSubstr;

TEST(Policy, dtypes_name_the_scheme) {
  EXPECT_EQ(scheme_of(QuantMode::AWQ, {"int4", "int8"}, 128, false).name(), "w4a8");
  EXPECT_EQ(scheme_of(QuantMode::AWQ, {"int4", "fp16"}, 64, true),
            QuantScheme::preset("w4a16", 64, true));
  EXPECT_EQ(scheme_of(QuantMode::SMOOTHQUANT, {"int8", "int8"}, 128, false).name(), "w8a8");
  EXPECT_EQ(scheme_of(QuantMode::RTN, {"int8", "bf16"}, 128, false).name(), "w8a16");
  EXPECT_EQ(scheme_of(QuantMode::AUTO, {"int8", "int8"}, 128, false).name(), "w8a8");
  EXPECT_EQ(scheme_of(QuantMode::AWQ, {"fp8", "fp8"}, 128, false).name(), "fp8");
  EXPECT_EQ(scheme_of(QuantMode::RTN, {"fp8", ""}, 128, false).name(), "fp8");
  EXPECT_EQ(scheme_of(QuantMode::AWQ, {"int4", "fp8"}, 64, true).full_name(),
            "w4afp8-g64-symmetric");
  EXPECT_EQ(scheme_of(QuantMode::NONE, {"bf16", "float"}, 128, false).name(), "bf16");
}

TEST(Policy, an_empty_policy_is_the_modes_usual_one) {
  EXPECT_EQ(scheme_of(QuantMode::AWQ, {}, 128, false).name(), "w4a16");
  EXPECT_EQ(scheme_of(QuantMode::SMOOTHQUANT, {}, 128, false).name(), "w8a8");
  EXPECT_EQ(scheme_of(QuantMode::RTN, {}, 128, false).name(), "w8a16");
  EXPECT_EQ(scheme_of(QuantMode::NONE, {}, 128, false).name(), "bf16");
  for (const QuantMode mode : {QuantMode::GPTQ, QuantMode::AWQ_GPTQ, QuantMode::AUTO})
    EXPECT_EQ(scheme_of(mode, {}, 128, false).name(), "w4a16") << mode_name(mode);
}

TEST(Policy, an_impossible_combination_is_refused_with_the_possible_ones) {
  const auto refused = [](QuantMode mode, const QuantPolicy& policy) {
    try {
      scheme_of(mode, policy, 128, false);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUnsupported);
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_THAT(
      refused(QuantMode::SMOOTHQUANT, {"int4", "fp16"}),
      HasSubstr(
          "smoothquant: int4 x int8, int8 x int8, fp8 x fp8, int4 x fp8; gptq: int4 x float"));
  EXPECT_THAT(refused(QuantMode::AUTO, {"int4", "fp3"}), HasSubstr("none: float x float"));
  EXPECT_THAT(refused(QuantMode::AWQ, {"int3", "int8"}),
              HasSubstr("awq: int4 x float, int4 x int8"));
  EXPECT_THAT(refused(QuantMode::AWQ, {"fp8", "int8"}), HasSubstr("fp8 x fp8, int4 x fp8"));
  EXPECT_THAT(refused(QuantMode::NONE, {"int4", "int8"}), HasSubstr("not possible"));
  EXPECT_THAT(refused(QuantMode::RTN, {"fp16", "int8"}), HasSubstr("not possible"));
  EXPECT_THAT(refused(QuantMode::AWQ, {"bf16", "bf16"}), HasSubstr("not possible"));
}

TEST(Policy, an_engine_must_be_what_was_asked_for) {
  const QuantScheme w4a8 = QuantScheme::preset("w4a8");
  EXPECT_NO_THROW(check_engine_agrees("awq", w4a8, QuantMode::NONE, {}, "dir"));
  EXPECT_NO_THROW(check_engine_agrees("awq", w4a8, QuantMode::AWQ, {"int4", "int8"}, "dir"));
  EXPECT_THROW(check_engine_agrees("awq", w4a8, QuantMode::AWQ, {"int4", "fp16"}, "dir"), Error);
  EXPECT_THROW(check_engine_agrees("awq", w4a8, QuantMode::RTN, {"int4", "int8"}, "dir"), Error);
}

}  // namespace
}  // namespace whit
