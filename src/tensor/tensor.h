// Dense, contiguous, row-major arrays. Packed bits never pretend to be one of these (see
// quant/quantized_tensor.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace whit {

using Shape = std::vector<int64_t>;
inline int64_t element_count(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}
std::string to_string(const Shape& shape);  // "[576, 1536]"

// 64-byte aligned, uninitialised bytes; large ones ask for huge pages.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;
  // Buffers side by side in one block of memory, so that small ones share huge pages. The block
  // goes with the last of them.
  static std::vector<Buffer> side_by_side(std::span<const int64_t> bytes);
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_.get());
  }
  int64_t bytes() const { return bytes_; }

 private:
  Buffer(std::shared_ptr<std::byte> data, int64_t bytes) : data_(std::move(data)), bytes_(bytes) {}
  std::shared_ptr<std::byte> data_;  // shared by what lies in one block
  int64_t bytes_ = 0;
};

// Owner. Movable, not copyable by accident.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType dtype, Shape shape);  // uninitialised
  static Tensor zeros(DType dtype, Shape shape);
  Tensor clone() const;

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int axis) const { return shape_[axis]; }
  int64_t size() const { return element_count(shape_); }
  int64_t bytes() const { return size() * size_of(dtype_); }
  bool empty() const { return shape_.empty(); }
  template <typename T>
  T* data() {
    return buffer_.as<T>();
  }
  template <typename T>
  const T* data() const {
    return buffer_.as<T>();
  }
  std::span<float> f32() { return {data<float>(), static_cast<size_t>(size())}; }
  std::span<const float> f32() const { return {data<float>(), static_cast<size_t>(size())}; }

 private:
  DType dtype_ = DType::kF32;
  Shape shape_;
  Buffer buffer_;
};

}  // namespace whit
