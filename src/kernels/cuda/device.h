// One GPU as the engine uses it: memory, one stream, and graphs of what was enqueued on it.
//
// This header names no type of CUDA's: whoever includes it compiles without the toolkit, and in a
// program that was built without CUDA open_device() says so. Work is enqueued and returns at once,
// but for what says that it waits. Errors of the device are exceptions: kUnsupported for a machine
// that cannot run this backend, kResource for memory, kIo for the rest; asynchronous ones come out
// of the next call that waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

struct CUstream_st;

namespace whit::cuda {

// An instantiated graph; opaque.
class Graph {
 public:
  virtual ~Graph() = default;
};

class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;
  virtual int multiprocessors() const = 0;
  virtual bool hopper() const = 0;  // SM 9.0: what programmatic dependent launch needs, and more
  virtual int64_t free_bytes() const = 0;
  virtual CUstream_st* stream() const = 0;

  // Throws kResource, with what was asked, what is free and what to do.
  virtual void* allocate(int64_t bytes, const char* purpose) = 0;
  virtual void release(void* pointer) noexcept = 0;
  // Page-locked host memory.
  virtual void* allocate_host(int64_t bytes) = 0;
  virtual void release_host(void* pointer) noexcept = 0;

  // `host` must be page-locked and unchanged until the copy is done.
  virtual void upload(void* device, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* device, int64_t bytes) = 0;
  // From any host memory; waits.
  virtual void upload_and_wait(void* device, const void* host, int64_t bytes) = 0;
  virtual void fill_zero(void* device, int64_t bytes) = 0;
  virtual void wait() = 0;

  // What `enqueue` puts on the stream, recorded and not run. It must not allocate or wait.
  virtual std::unique_ptr<Graph> record(const std::function<void()>& enqueue) = 0;
  virtual void run(Graph& graph) = 0;
};

// The process's first GPU. Throws kUnsupported, naming what is missing, and offers --backend cpu.
std::unique_ptr<Device> open_device();

// Device memory, released with its owner. The device outlives it.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device& device, int64_t bytes, const char* purpose)
      : device_(&device), data_(device.allocate(bytes, purpose)), bytes_(bytes) {}
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~DeviceBuffer() {
    if (data_ != nullptr) device_->release(data_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Page-locked host memory, released with its owner.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(Device& device, int64_t bytes)
      : device_(&device), data_(device.allocate_host(bytes)), bytes_(bytes) {}
  HostBuffer(HostBuffer&& other) noexcept { *this = std::move(other); }
  HostBuffer& operator=(HostBuffer&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HostBuffer() {
    if (data_ != nullptr) device_->release_host(data_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace whit::cuda
