#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace whit {
namespace {
constexpr int64_t kHugePage = 2 << 20;
}

std::string to_string(const Shape& shape) { return fmt::format("{}", shape); }

Buffer::Buffer(int64_t bytes) : bytes_(bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 64;
  const int64_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* pointer = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (pointer == nullptr)
    throw Error(ErrorKind::kResource, "out of memory: {} bytes wanted", bytes);
  if (bytes >= kHugePage) ::madvise(pointer, rounded, MADV_HUGEPAGE);
  data_.reset(static_cast<std::byte*>(pointer));
}

void Buffer::Free::operator()(std::byte* pointer) const { std::free(pointer); }

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
