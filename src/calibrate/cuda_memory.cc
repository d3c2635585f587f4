#include "calibrate/cuda_memory.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace whit {
namespace {

// Less than this one thread copies before others are awake.
constexpr int64_t kSmall = 256 << 10;

void copy(void* to, const void* from, int64_t bytes, ThreadPool& pool) {
  if (bytes <= kSmall) {
    std::memcpy(to, from, bytes);
    return;
  }
  constexpr int64_t kPiece = 4096;
  pool.parallel_for((bytes + kPiece - 1) / kPiece, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * kPiece, last = std::min(bytes, end * kPiece);
    std::memcpy(static_cast<std::byte*>(to) + first, static_cast<const std::byte*>(from) + first,
                last - first);
  });
}

}  // namespace

CudaMemory::CudaMemory(cuda::Device& device, ThreadPool& pool)
    : device_(device),
      pool_(pool),
      free_at_first_(device.free_bytes()),
      least_free_(free_at_first_) {
  for (cuda::HostBuffer& stage : stages_) stage = cuda::HostBuffer(device, kStageBytes);
}

cuda::DeviceBuffer CudaMemory::bytes(int64_t count, const char* purpose) {
  cuda::DeviceBuffer buffer(device_, count, purpose);
  least_free_ = std::min(least_free_, device_.free_bytes());
  return buffer;
}

cuda::DeviceBuffer CudaMemory::floats(int64_t count, const char* purpose) {
  return bytes(count * 4, purpose);
}

cuda::DeviceBuffer CudaMemory::zeros(int64_t count, const char* purpose) {
  cuda::DeviceBuffer buffer = floats(count, purpose);
  device_.fill_zero(buffer.as<void>(), count * 4);
  return buffer;
}

cuda::DeviceBuffer CudaMemory::copy_of(std::span<const float> values, const char* purpose) {
  cuda::DeviceBuffer buffer = floats(std::ssize(values), purpose);
  upload(buffer.as<void>(), values.data(), std::ssize(values) * 4);
  return buffer;
}

void CudaMemory::upload(void* device, const void* host, int64_t bytes) {
  upload_rows(device, bytes, 1, [&](int64_t first, int64_t last, std::byte* to) {
    std::memcpy(to, static_cast<const std::byte*>(host) + first, last - first);
  });
}

void CudaMemory::upload_rows(void* device, int64_t rows, int64_t row_bytes,
                             const std::function<void(int64_t, int64_t, std::byte*)>& fill) {
  if (row_bytes > kStageBytes)
    throw Error(ErrorKind::kUnsupported, "a row of {} bytes is more than a copy to the GPU takes",
                row_bytes);
  const int64_t at_once = kStageBytes / row_bytes;
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t count = std::min(at_once, rows - first);
    // Whatever came from this stage has arrived: the copy after it waited for it.
    auto* stage = stages_[next_].as<std::byte>();
    if (count * row_bytes <= kSmall)
      fill(first, first + count, stage);
    else
      pool_.parallel_for(count, [&](int64_t begin, int64_t end) {
        fill(first + begin, first + end, stage + begin * row_bytes);
      });
    if (uploading_) device_.wait();
    device_.upload(static_cast<std::byte*>(device) + first * row_bytes, stage, count * row_bytes);
    uploading_ = true;
    next_ ^= 1;
  }
}

void CudaMemory::download(void* host, const void* device, int64_t bytes) {
  device_.wait();
  uploading_ = false;
  const auto part = [&](int64_t first) { return std::min(kStageBytes, bytes - first); };
  const auto fetch = [&](int64_t first, int stage) {
    device_.download(stages_[stage].as<void>(), static_cast<const std::byte*>(device) + first,
                     part(first));
  };
  if (bytes > 0) fetch(0, 0);
  int stage = 0;
  for (int64_t first = 0; first < bytes; first += kStageBytes, stage ^= 1) {
    device_.wait();
    if (first + kStageBytes < bytes) fetch(first + kStageBytes, stage ^ 1);
    copy(static_cast<std::byte*>(host) + first, stages_[stage].as<void>(), part(first), pool_);
  }
}

double CudaMemory::sum(const double* device, int64_t count) {
  std::vector<double> values(count);
  download(values.data(), device, count * static_cast<int64_t>(sizeof(double)));
  double total = 0;
  for (const double value : values) total += value;
  return total;
}

}  // namespace whit
