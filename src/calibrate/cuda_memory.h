// Copies between host tensors and a GPU through page-locked memory that all threads fill or empty,
// and device memory whose use is counted.
#pragma once

#include <functional>
#include <span>

#include "base/thread_pool.h"
#include "kernels/cuda/device.h"
#include "tensor/tensor.h"

namespace whit {

class CudaMemory {
 public:
  CudaMemory(cuda::Device& device, ThreadPool& pool);

  cuda::DeviceBuffer floats(int64_t count, const char* purpose);
  cuda::DeviceBuffer zeros(int64_t count, const char* purpose);
  cuda::DeviceBuffer bytes(int64_t count, const char* purpose);
  cuda::DeviceBuffer copy_of(std::span<const float> values, const char* purpose);

  // `host` may change at once. Waits, if at all, for earlier work, not for this copy.
  void upload(void* device, const void* host, int64_t bytes);
  // Rows of `row_bytes` that `fill` writes: fill(first, last, to) on any thread.
  void upload_rows(void* device, int64_t rows, int64_t row_bytes,
                   const std::function<void(int64_t, int64_t, std::byte*)>& fill);
  // Waits for all that was enqueued.
  void download(void* host, const void* device, int64_t bytes);
  // The sum of `count` values.
  double sum(const double* device, int64_t count);

  cuda::Device& device() { return device_; }
  ThreadPool& pool() { return pool_; }
  int64_t peak_bytes() const { return free_at_first_ - least_free_; }

 private:
  static constexpr int64_t kStageBytes = int64_t{32} << 20;

  cuda::Device& device_;
  ThreadPool& pool_;
  cuda::HostBuffer stages_[2];
  bool uploading_ = false;  // the last copy from a stage may be under way
  int next_ = 0;
  int64_t free_at_first_, least_free_;
};

}  // namespace whit
