#include "tensor/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/checked.h"
#include "base/error.h"

namespace whit {
namespace {

constexpr int64_t kHugePage = 2 << 20;
constexpr int64_t kAlignment = 64;

// A part of a block is told by its address: it lies kAlignment beyond a multiple of 2 · kAlignment,
// memory of its own at one. Before each part stands where its block begins, and the block begins
// with the number of its parts that are left.
bool is_part(const std::byte* data) {
  return reinterpret_cast<uintptr_t>(data) % (2 * kAlignment) != 0;
}
std::byte*& block_of(std::byte* part) { return *reinterpret_cast<std::byte**>(part - kAlignment); }
std::atomic<size_t>& parts_left(std::byte* block) {
  return *reinterpret_cast<std::atomic<size_t>*>(block);
}

std::byte* allocate(int64_t bytes) {
  const int64_t alignment = bytes >= kHugePage ? kHugePage : 2 * kAlignment;
  const int64_t rounded = std::max(round_up(bytes, alignment), alignment);
  void* pointer = std::aligned_alloc(alignment, rounded);
  if (pointer == nullptr)
    throw Error(ErrorKind::kResource, "out of memory: {} bytes wanted", bytes);
  if (bytes >= kHugePage) ::madvise(pointer, rounded, MADV_HUGEPAGE);
  return static_cast<std::byte*>(pointer);
}

}  // namespace

std::string to_string(const Shape& shape) { return fmt::format("{}", shape); }

Buffer::Buffer(int64_t bytes) : Buffer(allocate(bytes), bytes) {}

std::vector<Buffer> Buffer::side_by_side(std::span<const int64_t> bytes) {
  // Each part with what stands before it; the block's own beginning.
  const auto room = [](int64_t part) {
    return kAlignment + round_up(part, 2 * kAlignment) + kAlignment;
  };
  int64_t total = 2 * kAlignment;
  for (const int64_t part : bytes) total += room(part);
  std::vector<Buffer> buffers;
  if (bytes.empty()) return buffers;
  buffers.reserve(bytes.size());
  std::byte* block = allocate(total);
  new (block) std::atomic<size_t>(bytes.size());
  std::byte* part = block + 3 * kAlignment;
  for (const int64_t size : bytes) {
    block_of(part) = block;
    buffers.push_back(Buffer(part, size));
    part += room(size);
  }
  return buffers;
}

void Buffer::Free::operator()(std::byte* pointer) const {
  if (is_part(pointer)) {
    std::byte* block = block_of(pointer);
    if (parts_left(block).fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    pointer = block;
  }
  std::free(pointer);
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
