#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"

namespace whit {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kAlignment = 64;

std::shared_ptr<std::byte> allocate(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  const int64_t rounded = std::max(round_up(bytes, alignment), alignment);
  void* pointer = std::aligned_alloc(alignment, rounded);
  if (pointer == nullptr)
    throw Error(ErrorKind::kResource, "out of memory: {} bytes wanted", bytes);
  if (bytes >= kHugePage) ::madvise(pointer, rounded, MADV_HUGEPAGE);
  return {static_cast<std::byte*>(pointer), std::free};
}

}  // namespace

std::string to_string(const Shape& shape) { return fmt::format("{}", shape); }

Buffer::Buffer(int64_t bytes) : Buffer(allocate(bytes), bytes) {}

std::vector<Buffer> Buffer::side_by_side(std::span<const int64_t> bytes) {
  int64_t total = 0;
  for (const int64_t part : bytes) total += round_up(part, kAlignment);
  const std::shared_ptr<std::byte> block = allocate(total);
  std::vector<Buffer> buffers;
  std::byte* part = block.get();
  for (const int64_t size : bytes) {
    buffers.push_back(Buffer({block, part}, size));
    part += round_up(size, kAlignment);
  }
  return buffers;
}

Tensor::Tensor(DType dtype, Shape shape)
    : dtype_(dtype), shape_(std::move(shape)), buffer_(element_count(shape_) * size_of(dtype)) {}

Tensor Tensor::zeros(DType dtype, Shape shape) {
  Tensor result(dtype, std::move(shape));
  std::memset(result.data<void>(), 0, result.bytes());
  return result;
}

Tensor Tensor::clone() const {
  Tensor result(dtype_, shape_);
  std::memcpy(result.data<void>(), data<void>(), bytes());
  return result;
}

}  // namespace whit
