#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace whit {
namespace {

bool aligned(const void* pointer, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

TEST(BufferTest, is_aligned_for_vectors_and_large_ones_for_huge_pages) {
  for (const int64_t bytes : {0, 1, 63, 64, 65, 100000}) {
    Buffer buffer(bytes);
    EXPECT_EQ(buffer.bytes(), bytes);
    ASSERT_NE(buffer.as<void>(), nullptr);
    EXPECT_TRUE(aligned(buffer.as<void>(), 64));
    std::memset(buffer.as<void>(), 1, bytes);
  }
  Buffer large((2 << 20) + 5);
  EXPECT_TRUE(aligned(large.as<void>(), 2 << 20));
  large.as<char>()[large.bytes() - 1] = 1;
}

TEST(BufferTest, moves_without_copying) {
  Buffer from(100);
  const void* data = from.as<void>();
  const Buffer to = std::move(from);
  EXPECT_EQ(to.as<void>(), data);
  EXPECT_EQ(to.bytes(), 100);
}

TEST(BufferTest, lies_side_by_side_with_others_until_the_last_of_them_goes) {
  const std::vector<int64_t> sizes = {100, 0, 1, 128, 3 << 20, 64};
  std::vector<Buffer> buffers = Buffer::side_by_side(sizes);
  ASSERT_EQ(buffers.size(), sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(buffers[i].bytes(), sizes[i]);
    EXPECT_TRUE(aligned(buffers[i].as<void>(), 64));
    std::memset(buffers[i].as<void>(), static_cast<int>(i + 1), sizes[i]);
  }
  const auto holds = [](const Buffer& buffer, char value) {
    return std::all_of(buffer.as<char>(), buffer.as<char>() + buffer.bytes(),
                       [&](char byte) { return byte == value; });
  };
  for (size_t i = 0; i < sizes.size(); ++i)
    EXPECT_TRUE(holds(buffers[i], static_cast<char>(i + 1))) << i;
  const Buffer last = std::move(buffers[4]);
  buffers.clear();
  EXPECT_TRUE(holds(last, 5));
  EXPECT_TRUE(Buffer::side_by_side({}).empty());
}

TEST(TensorTest, knows_its_shape_and_size) {
  const Tensor tensor(DType::kF16, {3, 5, 2});
  EXPECT_EQ(tensor.dtype(), DType::kF16);
  EXPECT_EQ(tensor.size(), 30);
  EXPECT_EQ(tensor.bytes(), 60);
  EXPECT_EQ(tensor.dim(1), 5);
  EXPECT_FALSE(tensor.empty());
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(to_string(tensor.shape()), "[3, 5, 2]");
  EXPECT_EQ(to_string(Shape{}), "[]");
}

TEST(TensorTest, zeros_are_zero_also_without_elements) {
  Tensor tensor = Tensor::zeros(DType::kF32, {7, 3});
  EXPECT_EQ(std::count(tensor.f32().begin(), tensor.f32().end(), 0.0f), 21);
  const Tensor none = Tensor::zeros(DType::kF32, {0, 3});
  EXPECT_EQ(none.bytes(), 0);
  EXPECT_TRUE(none.f32().empty());
}

TEST(TensorTest, a_clone_has_its_own_copy) {
  Tensor tensor = Tensor::zeros(DType::kF32, {2, 2});
  tensor.f32()[3] = 4.0f;
  const Tensor copy = tensor.clone();
  tensor.f32()[3] = 5.0f;
  EXPECT_EQ(copy.f32()[3], 4.0f);
  EXPECT_EQ(copy.shape(), tensor.shape());
}

}  // namespace
}  // namespace whit
