#include "quant/scheme.h"

#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "quant/weight.h"

namespace whit {
namespace {

ErrorKind kind_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.kind();
  }
  ADD_FAILURE() << "no error";
  return ErrorKind::kIo;
}

TEST(SchemeTest, presets_say_what_their_names_say) {
  EXPECT_FALSE(QuantScheme::preset("bf16").weights.has_value());
  const QuantScheme w4a16 = QuantScheme::preset("w4a16", 64, true);
  EXPECT_EQ(w4a16.weights->num_bits, 4);
  EXPECT_EQ(w4a16.weights->group_size, 64);
  EXPECT_TRUE(w4a16.weights->symmetric);
  EXPECT_FALSE(w4a16.quantizes_activations());
  const QuantScheme w4a8 = QuantScheme::preset("w4a8");
  EXPECT_EQ(w4a8.weights->group_size, 128);
  EXPECT_FALSE(w4a8.weights->symmetric);
  EXPECT_TRUE(w4a8.quantizes_activations());
  EXPECT_FALSE(w4a8.static_activations());
  const QuantScheme w8a8 = QuantScheme::preset("w8a8");
  EXPECT_EQ(w8a8.weights->strategy, QuantStrategy::kChannel);
  EXPECT_EQ(w8a8.input_activations->strategy, QuantStrategy::kToken);
  EXPECT_FALSE(QuantScheme::preset("w8a16").quantizes_activations());
}

TEST(SchemeTest, fp8_schemes_are_of_floats_of_8_bits) {
  const QuantScheme fp8 = QuantScheme::preset("fp8");
  EXPECT_EQ(fp8.weights->type, NumberType::kFloat);
  EXPECT_EQ(fp8.weights->strategy, QuantStrategy::kChannel);
  EXPECT_EQ(fp8.input_activations->type, NumberType::kFloat);
  EXPECT_EQ(fp8.input_activations->largest_code(), 448);
  EXPECT_EQ(weight_format(fp8), WeightFormat::kFp8Channel);
  EXPECT_NE(fp8, QuantScheme::preset("w8a8"));
  const QuantScheme w4afp8 = QuantScheme::preset("w4afp8", 64, true);
  EXPECT_EQ(w4afp8.weights, QuantScheme::preset("w4a16", 64, true).weights);
  EXPECT_EQ(w4afp8.input_activations, fp8.input_activations);
  EXPECT_EQ(w4afp8.full_name(), "w4afp8-g64-symmetric");
  EXPECT_EQ(weight_format(w4afp8), WeightFormat::kInt4Group);
  EXPECT_EQ(weight_format(QuantScheme::preset("w8a8")), WeightFormat::kInt8Channel);
  EXPECT_EQ(weight_format(QuantScheme::preset("bf16")), WeightFormat::kBF16);
}

TEST(SchemeTest, unknown_names_are_refused_with_the_known_ones) {
  try {
    QuantScheme::preset("w2a2");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    for (const std::string_view name : scheme_names())
      EXPECT_NE(std::string_view(error.what()).find(name), std::string_view::npos) << name;
  }
  for (const int64_t group_size : {0, -1, 31, 256})
    EXPECT_EQ(kind_of([&] { QuantScheme::preset("w4a8", group_size); }), ErrorKind::kUnsupported);
}

TEST(SchemeTest, every_preset_survives_json_and_keeps_its_name) {
  for (const std::string_view name : scheme_names())
    for (const int64_t group_size : {32, 64, 128})
      for (const bool symmetric : {false, true}) {
        QuantScheme scheme = QuantScheme::preset(name, group_size, symmetric);
        EXPECT_EQ(scheme.name(), name);
        EXPECT_EQ(scheme_from_json(Json::parse(to_json(scheme).dump()), "test"), scheme);
        if (!scheme.quantizes_activations()) continue;
        scheme.input_activations->dynamic = false;
        scheme.input_activations->strategy = QuantStrategy::kTensor;
        EXPECT_TRUE(scheme.static_activations());
        EXPECT_EQ(scheme_from_json(to_json(scheme), "test"), scheme);
      }
}

TEST(SchemeTest, two_level_scales_are_w4a8_s_alone) {
  const QuantScheme scheme = QuantScheme::preset("w4a8", 64, false, true);
  EXPECT_EQ(scheme.full_name(), "w4a8-g64-two-level");
  EXPECT_NE(scheme, QuantScheme::preset("w4a8", 64));
  EXPECT_EQ(scheme_from_json(Json::parse(to_json(scheme).dump()), "test"), scheme);
  for (const std::string_view name : {"w4a16", "w8a8", "w8a16", "fp8", "w4afp8", "bf16"})
    EXPECT_EQ(kind_of([&] { QuantScheme::preset(name, 128, false, true); }),
              ErrorKind::kUnsupported);
  Json json = to_json(QuantScheme::preset("w4a16"));
  json["weights"]["two_level"] = true;
  EXPECT_EQ(kind_of([&] { scheme_from_json(json, "test"); }), ErrorKind::kUnsupported);
}

TEST(SchemeTest, json_that_is_no_scheme_is_refused) {
  const auto kind = [&](const char* text) {
    return kind_of([&] { scheme_from_json(Json::parse(text), "engine.json: layer 3"); });
  };
  EXPECT_EQ(kind("[]"), ErrorKind::kInvalidData);
  EXPECT_EQ(kind("null"), ErrorKind::kInvalidData);
  EXPECT_EQ(kind(R"({"weights": {}})"), ErrorKind::kNotFound);
  EXPECT_EQ(kind(R"({"weights": {"num_bits": 4}})"), ErrorKind::kNotFound);
  EXPECT_EQ(kind(R"({"weights": 5})"), ErrorKind::kInvalidData);
  EXPECT_EQ(kind(R"({"weights": [4]})"), ErrorKind::kInvalidData);
  for (const char* bits : {"0", "-4", "4294967300", "4.5"})
    EXPECT_EQ(
        kind(fmt::format(
                 R"({{"weights": {{"num_bits": {}, "strategy": "group", "group_size": 128}}}})",
                 bits)
                 .c_str()),
        ErrorKind::kInvalidData)
        << bits;
  EXPECT_EQ(kind(R"({"weights": {"num_bits": "four", "strategy": "group"}})"),
            ErrorKind::kInvalidData);
  EXPECT_EQ(kind(R"({"weights": {"num_bits": 4, "strategy": "row"}})"), ErrorKind::kInvalidData);
}

TEST(SchemeTest, well_formed_schemes_without_kernels_are_refused_as_unsupported) {
  for (
      const char* text : {
          R"({"weights": {"num_bits": 3, "strategy": "group", "group_size": 128}})",
          R"({"weights": {"num_bits": 4, "strategy": "group", "group_size": 48}})",
          R"({"weights": {"num_bits": 4, "strategy": "channel"}})",
          R"({"weights": {"num_bits": 8, "strategy": "channel", "symmetric": false}})",
          R"({"weights": {"num_bits": 8, "strategy": "group", "group_size": 128}})",
          R"({"weights": null, "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": true}})",
          R"({"weights": {"num_bits": 8, "strategy": "channel"},
               "input_activations": {"num_bits": 4, "strategy": "token", "dynamic": true}})",
          R"({"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}})",
          R"({"weights": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}})",
          R"({"weights": {"num_bits": 8, "type": "posit", "strategy": "channel"}})",
          R"({"weights": {"num_bits": 8, "type": "float", "strategy": "tensor"},
               "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}})",
          R"({"weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
               "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": true}})",
      })
    EXPECT_EQ(kind_of([&] { scheme_from_json(Json::parse(text), "test"); }),
              ErrorKind::kUnsupported)
        << text;
}

}  // namespace
}  // namespace whit
