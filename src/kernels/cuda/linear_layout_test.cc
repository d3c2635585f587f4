#include "kernels/cuda/linear_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_test_util.h"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

struct Packed {
  LinearWeight weight;
  std::vector<std::byte> bytes;
};

Packed pack(LinearFormat format, std::span<const WeightView> parts) {
  int64_t n = 0;
  for (const WeightView& part : parts) n += part.n;
  Packed packed;
  packed.bytes.resize(
      static_cast<size_t>(packed_bytes(format, n, parts[0].k, parts[0].group_size)));
  ThreadPool pool(2);
  packed.weight = pack_linear(format, parts, packed.bytes.data(), pool);
  return packed;
}

// The value that a kernel reads for (row, k), by the formulas of linear_layout.h.
float value_at(const Packed& packed, int64_t row, int64_t k) {
  const LinearFormat format = packed.weight.format;
  const bool int4 = format != LinearFormat::kW8A8 && format != LinearFormat::kW8A16;
  const TileLayout layout =
      tile_layout(int4 ? 4 : 8, packed.weight.n, packed.weight.k, packed.weight.group_size);
  const std::byte* tile =
      packed.bytes.data() + row / 64 * layout.block_bytes() + k / layout.tile_k * layout.tile_bytes;
  const int unit = static_cast<int>(row % 64 / 16), r = static_cast<int>(row % 16);
  const int inside = static_cast<int>(k % layout.tile_k);
  auto word = [&](const std::byte* base, int64_t index) {
    uint32_t bits;
    std::memcpy(&bits, base + index * 4, 4);
    return bits;
  };
  if (!int4) {
    uint32_t bits;
    if (format == LinearFormat::kW8A8)
      bits = word(tile,
                  unit * 256 + unit_word_w8a8(r, inside % 32 / 8, inside % 8 / 4, inside / 32)) >>
             (8 * (inside % 4));
    else
      bits = word(tile,
                  unit * 256 + unit_word(r, inside % 16 / 4, inside % 4 / 2, inside % 32 / 16)) >>
             (16 * (inside / 32) + 8 * (inside % 2));
    const auto code = static_cast<int8_t>(bits);
    float scale;
    std::memcpy(&scale, packed.bytes.data() + layout.scales_offset() + row * 4, 4);
    return static_cast<float>(code) * scale;
  }
  uint32_t code;
  if (format != LinearFormat::kW4A16) {
    const int i = inside / 64, jj = inside % 64 / 32;
    code = word(tile, unit * 256 + unit_word(r, inside % 32 / 8, inside % 8 / 4, jj)) >>
           (8 * (inside % 4) + 4 * i);
    if (format == LinearFormat::kW4AFp8) {
      const uint32_t bits =
          word(tile, unit * 256 + unit_word(r, inside % 32 / 8, inside % 8 / 4, jj));
      const int b = inside % 4;
      code = (bits >> (4 * (4 * i + b)) & 7) | (bits >> (8 * b + 7 - 4 * i) & 1) << 3;
    }
  } else {
    const int i = inside / 32, jj = inside % 32 / 16;
    code = word(tile, unit * 256 + unit_word(r, inside % 16 / 4, inside % 4 / 2, jj)) >>
           (16 * (inside % 2) + 4 * i);
  }
  const int group = inside / (128 / layout.groups);
  const uint32_t scale = word(tile, 1024 + (unit * layout.groups + group) * 16 + r % 8 * 2 + r / 8);
  const uint32_t zero = (scale >> 16) - (format != LinearFormat::kW4A16 ? 0 : 0x4300);
  float step = 1;
  if (format == LinearFormat::kW4A8TwoLevel)
    std::memcpy(&step, packed.bytes.data() + layout.scales_offset() + row * 4, 4);
  const float of_group = format == LinearFormat::kW4A8TwoLevel
                             ? static_cast<float>(scale & 0xffff) * step
                             : f16_to_f32(static_cast<uint16_t>(scale));
  return static_cast<float>(static_cast<int>(code & 15) - static_cast<int>(zero)) * of_group;
}

void expect_same_values(LinearFormat format, std::span<const WeightView> parts) {
  const Packed packed = pack(format, parts);
  const int64_t k = parts[0].k;
  std::vector<float> expected(static_cast<size_t>(k));
  int64_t row = 0;
  for (const WeightView& part : parts)
    for (int64_t i = 0; i < part.n; ++i, ++row) {
      dequantize_rows(part, i, i + 1, expected.data());
      for (int64_t c = 0; c < k; ++c)
        ASSERT_EQ(value_at(packed, row, c), expected[c])
            << name(format) << " row " << row << " column " << c;
    }
  EXPECT_EQ(packed.weight.n, row);
  // Padding is zero: rows to a multiple of 64, columns to the tile's end.
  for (int64_t i = row; i < round_up(row, 64); ++i) ASSERT_EQ(value_at(packed, i, 0), 0) << i;
  const bool int8 = format == LinearFormat::kW8A8 || format == LinearFormat::kW8A16;
  const int64_t k_end = round_up(k, int8 ? 64 : 128);
  for (int64_t c = k; c < k_end; ++c) ASSERT_EQ(value_at(packed, 0, c), 0) << c;
}

TEST(CudaLinearLayout, keeps_every_weight_of_stacked_parts) {
  for (const int64_t group_size : {32, 64, 128})
    for (const bool zero_points : {false, true})
      for (const int64_t k : {int64_t{320}, int64_t{200}}) {
        const auto a = random_weight(WeightFormat::kInt4Group, 70, k, group_size, zero_points, 1);
        const auto b = random_weight(WeightFormat::kInt4Group, 9, k, group_size, zero_points, 2);
        const WeightView parts[] = {a.view(), b.view()};
        expect_same_values(LinearFormat::kW4A8, parts);
        expect_same_values(LinearFormat::kW4A16, parts);
        expect_same_values(LinearFormat::kW4AFp8, parts);
      }
  for (const bool zero_points : {false, true}) {
    auto first = random_weight(WeightFormat::kInt4Group, 70, 320, 128, zero_points, 1);
    auto second = random_weight(WeightFormat::kInt4Group, 9, 320, 128, zero_points, 2);
    make_two_level(first, 5);
    make_two_level(second, 6);
    const WeightView two[] = {first.view(), second.view()};
    expect_same_values(LinearFormat::kW4A8TwoLevel, two);
  }
  const auto a = random_weight(WeightFormat::kInt8Channel, 70, 200, 0, false, 3);
  const auto b = random_weight(WeightFormat::kInt8Channel, 9, 200, 0, false, 4);
  const WeightView parts[] = {a.view(), b.view()};
  expect_same_values(LinearFormat::kW8A8, parts);
  expect_same_values(LinearFormat::kW8A16, parts);
}

TEST(CudaLinearLayout, says_whether_zero_points_differ_from_eight) {
  auto weight = random_weight(WeightFormat::kInt4Group, 5, 256, 128, true, 5);
  std::memset(weight.zeros.data<uint8_t>(), 0x88, weight.zeros.bytes());
  WeightView view = weight.view();
  EXPECT_FALSE(pack(LinearFormat::kW4A8, {&view, 1}).weight.zero_points);
  weight.zeros.data<uint8_t>()[4] = 0x87;
  EXPECT_TRUE(pack(LinearFormat::kW4A8, {&view, 1}).weight.zero_points);
}

TEST(CudaLinearLayout, keeps_fp8_rows_and_their_scales) {
  auto a = random_weight(WeightFormat::kFp8Channel, 5, 40, 0, false, 3);
  const auto b = random_weight(WeightFormat::kFp8Channel, 9, 40, 0, false, 4);
  const WeightView parts[] = {a.view(), b.view()};
  const Packed packed = pack(LinearFormat::kFp8, parts);
  for (int64_t row = 0; row < 14; ++row) {
    std::vector<float> expected(40);
    dequantize_rows(parts[row < 5 ? 0 : 1], row < 5 ? row : row - 5, row < 5 ? row + 1 : row - 4,
                    expected.data());
    float scale;
    std::memcpy(&scale, &packed.bytes[14 * 48 + row * 4], 4);
    for (int64_t i = 0; i < 40; ++i)
      ASSERT_EQ(e4m3_to_f32(static_cast<uint8_t>(packed.bytes[row * 48 + i])) * scale, expected[i]);
  }
  a.data.data<uint8_t>()[77] = 0xff;
  EXPECT_THROW(pack(LinearFormat::kFp8, parts), Error);
}

TEST(CudaLinearLayout, refuses_what_has_no_kernel) {
  EXPECT_THROW(packed_bytes(LinearFormat::kW4A8, 64, 256, 48), Error);
  EXPECT_THROW(packed_bytes(LinearFormat::kW8A8, 0, 256, 0), Error);
  const auto a = random_weight(WeightFormat::kInt8Channel, 4, 64, 0, false, 7);
  const auto b = random_weight(WeightFormat::kInt8Channel, 4, 128, 0, false, 8);
  const WeightView parts[] = {a.view(), b.view()};
  std::vector<std::byte> out(1 << 16);
  ThreadPool pool(1);
  EXPECT_THROW(pack_linear(LinearFormat::kW8A8, parts, out.data(), pool), Error);
  EXPECT_THROW(pack_linear(LinearFormat::kW4A8, {parts, 1}, out.data(), pool), Error);
}

TEST(CudaLinearLayout, sums_K_in_chunks_that_depend_on_the_shape_alone) {
  EXPECT_EQ(k_chunks(4096, 4096), 4);
  EXPECT_EQ(k_chunks(28672, 4096), 1);
  EXPECT_EQ(k_chunks(14336, 4096), 2);
  EXPECT_EQ(k_chunks(576, 128), 1);  // one tile
}

}  // namespace
}  // namespace whit::cuda
