#include "checkpoint/dequantize.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace whit {
namespace {

std::vector<uint8_t> from_hex(const std::string& text) {
  std::vector<uint8_t> result;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    result.push_back(static_cast<uint8_t>(std::stoi(text.substr(i, 2), nullptr, 16)));
  return result;
}

StorageType type_by_name(const std::string& wanted) {
  for (int i = 0; i <= static_cast<int>(StorageType::kIQ4_XS); ++i)
    if (name(static_cast<StorageType>(i)) == wanted) return static_cast<StorageType>(i);
  throw Error(ErrorKind::kInvalidData, "no type {}", wanted);
}

TEST(Dequantize, every_type_is_bit_equal_to_the_numpy_reference) {
  const std::string path = WHIT_SOURCE_DIR "/src/checkpoint/testdata/dequantize_vectors.json";
  const Json vectors = parse_json(read_file(path), path);
  EXPECT_EQ(vectors.size(), 14u);
  for (const Json& vector : vectors) {
    const auto type = type_by_name(vector["type"].get<std::string>());
    const auto data = from_hex(vector["data"].get<std::string>());
    const auto expected = from_hex(vector["f32"].get<std::string>());
    const auto elements = static_cast<int64_t>(expected.size() / sizeof(float));
    ASSERT_EQ(elements / block_elements(type) * block_bytes(type),
              static_cast<int64_t>(data.size()))
        << name(type);
    std::vector<uint8_t> shifted(data.size() + 1);  // data need not be aligned
    std::copy(data.begin(), data.end(), shifted.begin() + 1);
    std::vector<float> values(elements);
    dequantize(type, shifted.data() + 1, elements, values.data());
    EXPECT_EQ(std::memcmp(values.data(), expected.data(), expected.size()), 0) << name(type);
  }
}

TEST(Dequantize, every_finite_f16_is_exact) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7c00) == 0x7c00) continue;
    const auto half = static_cast<uint16_t>(bits);
    float value;
    dequantize(StorageType::kF16, reinterpret_cast<const uint8_t*>(&half), 1, &value);
    ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(f16_to_f32(half))) << bits;
  }
}

TEST(Dequantize, f16_infinity_and_nan_stay_what_they_are) {
  const uint16_t halves[] = {0x7c00, 0xfc00, 0x7e01};
  float values[3];
  dequantize(StorageType::kF16, reinterpret_cast<const uint8_t*>(halves), 3, values);
  EXPECT_EQ(values[0], std::numeric_limits<float>::infinity());
  EXPECT_EQ(values[1], -std::numeric_limits<float>::infinity());
  EXPECT_NE(values[2], values[2]);
}

TEST(Dequantize, integers_are_refused) {
  EXPECT_THROW(dequantize(StorageType::kI32, nullptr, 0, nullptr), Error);
}

TEST(Dequantize, finds_the_first_non_finite_value) {
  std::vector<float> values(10000, 1.0f);
  EXPECT_EQ(find_non_finite(values.data(), 10000), -1);
  values[9999] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(find_non_finite(values.data(), 10000), 9999);
  values[5000] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(find_non_finite(values.data(), 10000), 5000);
}

TEST(StorageType, names_and_numbers_of_both_formats_lead_back_to_the_type) {
  EXPECT_EQ(storage_type_from_safetensors("BF16"), StorageType::kBF16);
  EXPECT_EQ(storage_type_from_safetensors("Q4_0"), std::nullopt);
  EXPECT_EQ(storage_type_from_ggml(14), StorageType::kQ6_K);
  EXPECT_EQ(storage_type_from_ggml(16), std::nullopt);
  EXPECT_EQ(ggml_type_name(16), "IQ2_XXS");
  EXPECT_EQ(ggml_type_name(99), "type 99");
  EXPECT_EQ(storage_type_of(DType::kI64), StorageType::kI64);
}

}  // namespace
}  // namespace whit
