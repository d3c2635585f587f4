#include "checkpoint/prequantized.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "checkpoint/test_files.h"

namespace whit {
namespace {

using test::expect_error;
using test::TemporaryDirectory;

constexpr int64_t kRows = 16, kColumns = 64, kGroup = 32, kGroups = kColumns / kGroup;

// A weight of 4-bit codes with a zero point and a scale per group.
struct Codes {
  int code[kRows][kColumns], zero[kRows][kGroups];
  float scale[kRows][kGroups];

  explicit Codes(bool symmetric = false) {
    std::mt19937 random(symmetric ? 1 : 2);
    for (int n = 0; n < kRows; ++n) {
      for (int& value : code[n]) value = static_cast<int>(random() % 16);
      for (int g = 0; g < kGroups; ++g) {
        zero[n][g] = symmetric ? 8 : static_cast<int>(random() % 16);
        scale[n][g] = static_cast<float>(1 + random() % 1000) * 0x1p-12f;
      }
    }
  }
  float value(int n, int k) const {
    const int g = k / static_cast<int>(kGroup);
    return static_cast<float>(code[n][k] - zero[n][g]) * scale[n][g];
  }
};

// A checkpoint of one module "m", written tensor by tensor.
class Files {
 public:
  template <typename T>
  Files& add(const std::string& part, const char* dtype, const Shape& shape,
             const std::vector<T>& values) {
    tensors_[part] = {dtype, shape, test::raw(values)};
    return *this;
  }
  Files& remove(const std::string& part) {
    tensors_.erase(part);
    return *this;
  }
  Checkpoint open(const Json& config) const {
    std::string header = "{", data;
    for (const auto& [part, tensor] : tensors_) {
      header +=
          fmt::format(R"({}"m.{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})",
                      header.size() > 1 ? "," : "", part, tensor.dtype, Json(tensor.shape).dump(),
                      data.size(), data.size() + tensor.bytes.size());
      data += tensor.bytes;
    }
    folder_.write("model.safetensors", test::safetensors(header + "}", data));
    folder_.write("config.json", Json{{"quantization_config", config}}.dump());
    return Checkpoint::open(folder_.path());
  }
  PrequantizedLinear read(const Json& config) const {
    const Checkpoint checkpoint = open(config);
    const auto prequantized = Prequantized::from_config(checkpoint.config(), "config.json");
    EXPECT_TRUE(prequantized->holds(checkpoint, "m"));
    EXPECT_FALSE(prequantized->holds(checkpoint, "lm_head"));
    return prequantized->read(checkpoint, "m", kRows, kColumns);
  }

 private:
  struct Stored {
    std::string dtype;
    Shape shape;
    std::string bytes;
  };
  TemporaryDirectory folder_;
  std::map<std::string, Stored> tensors_;
};

std::vector<uint16_t> half(const std::vector<float>& values) {
  std::vector<uint16_t> bits;
  for (const float value : values) bits.push_back(f32_to_f16(value));
  return bits;
}

// Eight values a word, value(word, place).
template <typename Value>
std::vector<uint32_t> words(int64_t count, const Value& value) {
  std::vector<uint32_t> result;
  for (int64_t word = 0; word < count; ++word) {
    uint32_t bits = 0;
    for (int place = 7; place >= 0; --place)
      bits = bits << 4 | static_cast<uint32_t>(value(word, place));
    result.push_back(bits);
  }
  return result;
}

std::vector<float> scales_by_group(const Codes& codes) {
  std::vector<float> scales;
  for (int g = 0; g < kGroups; ++g)
    for (int n = 0; n < kRows; ++n) scales.push_back(codes.scale[n][g]);
  return scales;
}

// AutoAWQ writes the eight columns of a word as 0 2 4 6 1 3 5 7.
Files awq_files(const Codes& codes) {
  const std::string order = "02461357";
  const auto row = [&](int64_t word, int place) {
    return static_cast<int>(word % (kRows / 8)) * 8 + (order[place] - '0');
  };
  Files files;
  files.add("qweight", "I32", {kColumns, kRows / 8},
            words(kColumns * kRows / 8, [&](int64_t word, int place) {
              return codes.code[row(word, place)][word / (kRows / 8)];
            }));
  files.add("qzeros", "I32", {kGroups, kRows / 8},
            words(kGroups * kRows / 8, [&](int64_t word, int place) {
              return codes.zero[row(word, place)][word / (kRows / 8)];
            }));
  files.add("scales", "F16", {kGroups, kRows}, half(scales_by_group(codes)));
  return files;
}
const Json kAwq = {{"quant_method", "awq"}, {"bits", 4},
                   {"group_size", kGroup},  {"zero_point", true},
                   {"version", "gemm"},     {"modules_to_not_convert", nullptr}};

Files gptq_files(const Codes& codes, int zeros_off) {
  Files files;
  files.add("qweight", "I32", {kColumns / 8, kRows},
            words(kColumns / 8 * kRows, [&](int64_t word, int place) {
              return codes.code[word % kRows][word / kRows * 8 + place];
            }));
  files.add("qzeros", "I32", {kGroups, kRows / 8},
            words(kGroups * kRows / 8, [&](int64_t word, int place) {
              const int zero = codes.zero[word % (kRows / 8) * 8 + place][word / (kRows / 8)];
              return (zero - zeros_off) & 15;
            }));
  files.add("scales", "F16", {kGroups, kRows}, half(scales_by_group(codes)));
  std::vector<int32_t> groups;
  for (int k = 0; k < kColumns; ++k) groups.push_back(k / static_cast<int>(kGroup));
  files.add("g_idx", "I32", {kColumns}, groups);
  return files;
}
Json gptq(const char* version, bool symmetric) {
  return {{"quant_method", "gptq"}, {"bits", 4},         {"group_size", kGroup},
          {"sym", symmetric},       {"desc_act", false}, {"checkpoint_format", version}};
}

std::vector<float> row_scales(const Codes& codes) {
  std::vector<float> scales;
  for (const auto& row : codes.scale) scales.insert(scales.end(), std::begin(row), std::end(row));
  return scales;
}

Files packed_files(const Codes& codes) {
  Files files;
  files.add("weight_packed", "I32", {kRows, kColumns / 8},
            words(kRows * kColumns / 8, [&](int64_t word, int place) {
              return codes.code[word / (kColumns / 8)][word % (kColumns / 8) * 8 + place];
            }));
  files.add("weight_shape", "I64", {2}, std::vector<int64_t>{kRows, kColumns});
  files.add("weight_scale", "F16", {kRows, kGroups}, half(row_scales(codes)));
  files.add("weight_zero_point", "I32", {kRows / 8, kGroups},
            words(kRows / 8 * kGroups, [&](int64_t word, int place) {
              return codes.zero[word / kGroups * 8 + place][word % kGroups];
            }));
  return files;
}

Files plain_files(const Codes& codes) {
  std::vector<int8_t> values;
  for (const auto& row : codes.code)
    for (const int code : row) values.push_back(static_cast<int8_t>(code - 8));
  Files files;
  files.add("weight", "I8", {kRows, kColumns}, values);
  files.add("weight_scale", "F32", {kRows, kGroups}, row_scales(codes));
  return files;
}

Json args(int bits, bool symmetric, const char* strategy, bool dynamic = false) {
  Json json = {{"num_bits", bits},     {"type", "int"},      {"symmetric", symmetric},
               {"strategy", strategy}, {"dynamic", dynamic}, {"actorder", nullptr},
               {"group_size", nullptr}};
  if (std::string_view(strategy) == "group") json["group_size"] = kGroup;
  return json;
}
Json compressed(const char* format, const Json& weights, const Json& activations = nullptr) {
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", {"Linear"}},
              {"weights", weights},
              {"input_activations", activations},
              {"output_activations", nullptr}}}}},
          {"ignore", {"lm_head"}}};
}

void expect_values(const PrequantizedLinear& linear, const Codes& codes) {
  std::vector<float> values(kRows * kColumns);
  dequantize_rows(linear.weight.view(), 0, kRows, values.data());
  for (int n = 0; n < kRows; ++n)
    for (int k = 0; k < kColumns; ++k)
      ASSERT_EQ(values[n * kColumns + k], codes.value(n, k)) << n << ", " << k;
}

TEST(Prequantized, every_layout_of_4_bit_codes_gives_the_values_that_it_stands_for) {
  const Codes codes, symmetric(true);
  expect_values(awq_files(codes).read(kAwq), codes);
  expect_values(gptq_files(codes, 1).read(gptq("gptq", false)), codes);
  expect_values(gptq_files(codes, 0).read(gptq("gptq_v2", false)), codes);
  expect_values(gptq_files(symmetric, 1).read(gptq("gptq", true)), symmetric);
  expect_values(packed_files(codes).read(compressed("pack-quantized", args(4, false, "group"))),
                codes);
  const PrequantizedLinear plain = plain_files(symmetric).read(compressed(
      "int-quantized", args(4, true, "group"), args(8, true, "token", /*dynamic=*/true)));
  expect_values(plain, symmetric);
  EXPECT_EQ(plain.scheme.full_name(), "w4a8-g32-symmetric");
  EXPECT_EQ(awq_files(codes).read(kAwq).scheme.full_name(), "w4a16-g32");
}

TEST(Prequantized, int8_channels_and_static_scales_are_read) {
  std::vector<int8_t> values(kRows * kColumns);
  std::vector<float> scales;
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int8_t>(i * 37 - 128);
  for (int n = 0; n < kRows; ++n) scales.push_back(0.001f * static_cast<float>(n + 1));
  Files files;
  files.add("weight", "I8", {kRows, kColumns}, values)
      .add("weight_scale", "F32", {kRows, 1}, scales)
      .add("input_scale", "F32", {1}, std::vector<float>{0.25f});
  const Json token = args(8, true, "token", true), tensor = args(8, true, "tensor");
  const PrequantizedLinear dynamic =
      files.read(compressed("int-quantized", args(8, true, "channel"), token));
  EXPECT_EQ(dynamic.scheme.full_name(), "w8a8");
  EXPECT_EQ(dynamic.static_scale, 0);
  const PrequantizedLinear fixed =
      files.read(compressed("int-quantized", args(8, true, "channel"), tensor));
  EXPECT_EQ(fixed.scheme.full_name(), "w8a8-static");
  EXPECT_EQ(fixed.static_scale, 0.25f);
  for (int i = 0; i < kRows * kColumns; ++i)
    ASSERT_EQ(fixed.weight.data.data<int8_t>()[i], values[i]);

  // The same, four codes a word.
  std::vector<uint32_t> packed;
  for (size_t i = 0; i < values.size(); i += 4) {
    uint32_t word = 0;
    for (int place = 3; place >= 0; --place)
      word = word << 8 | static_cast<uint32_t>(values[i + place] + 128);
    packed.push_back(word);
  }
  files.remove("weight").add("weight_packed", "I32", {kRows, kColumns / 4}, packed);
  const PrequantizedLinear words =
      files.read(compressed("pack-quantized", args(8, true, "channel")));
  EXPECT_EQ(words.scheme.full_name(), "w8a16");
  for (int i = 0; i < kRows * kColumns; ++i)
    ASSERT_EQ(words.weight.data.data<int8_t>()[i], values[i]);
}

TEST(Prequantized, fp8_channels_are_read) {
  std::vector<uint8_t> values(kRows * kColumns);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<uint8_t>(i * 37 % 0x7f | (i % 3 == 0 ? 0x80 : 0));
  std::vector<float> scales;
  for (int n = 0; n < kRows; ++n) scales.push_back(0.001f * static_cast<float>(n + 1));
  const auto floats = [](Json json) {
    json["type"] = "float";
    return json;
  };
  const Json token = floats(args(8, true, "token", true)), tensor = floats(args(8, true, "tensor"));
  const Json channel = floats(args(8, true, "channel"));
  Files files;
  files.add("weight", "F8_E4M3", {kRows, kColumns}, values)
      .add("weight_scale", "F32", {kRows, 1}, scales)
      .add("input_scale", "F32", {1}, std::vector<float>{0.25f});
  const PrequantizedLinear dynamic = files.read(compressed("float-quantized", channel, token));
  EXPECT_EQ(dynamic.scheme.full_name(), "fp8");
  EXPECT_EQ(dynamic.weight.format, WeightFormat::kFp8Channel);
  for (int i = 0; i < kRows * kColumns; ++i)
    ASSERT_EQ(dynamic.weight.data.data<uint8_t>()[i], values[i]);
  for (int n = 0; n < kRows; ++n) ASSERT_EQ(dynamic.weight.scales.data<float>()[n], scales[n]);
  const PrequantizedLinear fixed = files.read(compressed("float-quantized", channel, tensor));
  EXPECT_EQ(fixed.scheme.full_name(), "fp8-static");
  EXPECT_EQ(fixed.static_scale, 0.25f);
  expect_error(ErrorKind::kUnsupported, {"int-quantized"},
               [&] { files.read(compressed("int-quantized", channel, token)); });
  expect_error(ErrorKind::kUnsupported, {"float-quantized"}, [&] {
    files.read(
        compressed("float-quantized", args(8, true, "channel"), args(8, true, "token", true)));
  });
  expect_error(ErrorKind::kUnsupported, {"float", "tensor"}, [&] {
    files.read(compressed("float-quantized", tensor, tensor));  // one scale for a whole weight
  });
  const Codes codes(true);
  EXPECT_EQ(packed_files(codes)
                .read(compressed("pack-quantized", args(4, true, "group"), token))
                .scheme.full_name(),
            "w4afp8-g32-symmetric");
  values[5] = 0xff;
  files.add("weight", "F8_E4M3", {kRows, kColumns}, values);
  expect_error(ErrorKind::kInvalidData, {"m.weight", "NaN"},
               [&] { files.read(compressed("float-quantized", channel, token)); });
}

TEST(Prequantized, the_group_of_a_module_is_told_by_its_tensors) {
  const Codes codes;
  Json config = compressed("mixed-precision", args(4, false, "group"));
  Json groups = config["config_groups"];
  groups["group_0"]["format"] = "pack-quantized";
  groups["group_1"] = {{"weights", args(8, true, "channel")},
                       {"input_activations", args(8, true, "token", true)},
                       {"format", "int-quantized"}};
  config["config_groups"] = groups;
  EXPECT_EQ(packed_files(codes).read(config).scheme.full_name(), "w4a16-g32");
  groups["group_1"] = groups["group_0"];
  groups["group_1"]["input_activations"] = args(8, true, "token", true);
  config["config_groups"] = groups;
  expect_error(ErrorKind::kUnsupported, {"m", "several", "config_groups"},
               [&] { packed_files(codes).read(config); });
}

TEST(Prequantized, what_has_no_kernels_is_refused_by_name) {
  const Codes codes;
  const auto refused = [](Json config, std::vector<std::string> parts) {
    parts.emplace_back("config.json");
    expect_error(ErrorKind::kUnsupported, parts, [&] {
      Prequantized::from_config(Json{{"quantization_config", std::move(config)}}, "config.json");
    });
  };
  const auto with = [](Json config, const char* key, const Json& value) {
    config[key] = value;
    return config;
  };
  EXPECT_FALSE(Prequantized::from_config(Json::object(), "config.json"));
  refused(with(kAwq, "quant_method", "bitsandbytes"), {"bitsandbytes", "awq, gptq"});
  refused(with(kAwq, "bits", 3), {"3 bits"});
  refused(with(kAwq, "group_size", -1), {"group_size -1"});
  refused(with(kAwq, "version", "gemv"), {"gemv"});
  refused(compressed("nvfp4-pack-quantized", args(4, true, "group")), {"nvfp4-pack-quantized"});
  refused(with(compressed("pack-quantized", args(4, true, "group")), "sparsity_config",
               {{"format", "sparse-24-bitmask"}}),
          {"sparsity_config"});
  refused(compressed("pack-quantized", args(8, true, "group")), {"no kernels"});

  Files reordered = gptq_files(codes, 1);
  reordered.add("g_idx", "I32", {kColumns}, std::vector<int32_t>(kColumns, 1));
  expect_error(ErrorKind::kUnsupported, {"m.g_idx", "desc_act"},
               [&] { reordered.read(gptq("gptq", false)); });
  Files fine = packed_files(codes);
  std::vector<float> scales(kRows * kGroups, 0.1f);
  fine.add("weight_scale", "F32", {kRows, kGroups}, scales);
  expect_error(ErrorKind::kUnsupported, {"m.weight_scale", "0.1", "f16"},
               [&] { fine.read(compressed("pack-quantized", args(4, false, "group"))); });
}

TEST(Prequantized, tensors_that_do_not_fit_are_named) {
  const Codes codes;
  const auto damaged = [](const Files& files, const Json& config, std::vector<std::string> parts) {
    expect_error(ErrorKind::kInvalidData, parts, [&] { files.read(config); });
  };
  Files short_codes = awq_files(codes), infinite = awq_files(codes), wide = plain_files(codes);
  short_codes.add("qweight", "I32", {kColumns / 2, kRows / 8},
                  std::vector<uint32_t>(kColumns / 2 * kRows / 8));
  damaged(short_codes, kAwq, {"m.qweight", "I32 [32, 2]", "I32 [64, 2]"});
  infinite.add("scales", "F16", {kGroups, kRows}, std::vector<uint16_t>(kGroups * kRows, 0x7c00));
  damaged(infinite, kAwq, {"m.scales"});
  damaged(gptq_files(codes, 1), gptq("gptq", true), {"m.qzeros", "symmetric"});
  wide.add("weight", "I8", {kRows, kColumns}, std::vector<int8_t>(kRows * kColumns, 9));
  damaged(wide, compressed("int-quantized", args(4, true, "group")), {"m.weight", "4-bit"});
  expect_error(ErrorKind::kNotFound, {"m.qzeros"},
               [&] { awq_files(codes).remove("qzeros").read(kAwq); });
}

}  // namespace
}  // namespace whit
