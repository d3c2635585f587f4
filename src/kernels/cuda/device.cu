#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/device_report.h"
#include "kernels/cuda/turn.h"

namespace whit::cuda {
namespace {

constexpr int kMinimumCapability = 80;  // bf16 tensor cores and cp.async

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // it would come out of a later launch's check otherwise
  throw_failure(doing, cudaGetErrorString(status));
}

struct Turns {
  std::mutex mutex;
  CUstream_st* last = nullptr;  // the stream whose turn was the last one
  cudaEvent_t end = nullptr;    // of a turn, once there are two streams
};
Turns& turns() {
  static Turns* all = new Turns;  // devices may be closed while the process ends
  return *all;
}

class RecordedGraph : public Graph {
 public:
  explicit RecordedGraph(cudaGraphExec_t graph) : graph_(graph) {}
  ~RecordedGraph() override { cudaGraphExecDestroy(graph_); }
  cudaGraphExec_t get() const { return graph_; }

 private:
  cudaGraphExec_t graph_;
};

class CudaDevice : public Device {
 public:
  explicit CudaDevice(const cudaDeviceProp& properties) : properties_(properties) {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream");
  }
  ~CudaDevice() override {
    leave_turns(stream_);
    cudaStreamDestroy(stream_);
  }

  std::string name() const override { return properties_.name; }
  int multiprocessors() const override { return properties_.multiProcessorCount; }
  bool hopper() const override { return properties_.major == 9; }
  CUstream_st* stream() const override { return stream_; }

  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "asking for its memory");
    return static_cast<int64_t>(free);
  }

  void* allocate(int64_t bytes, const char* purpose) override {
    void* pointer = nullptr;
    const cudaError_t status = cudaMalloc(&pointer, bytes > 0 ? bytes : 1);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw_no_memory(name(), purpose, bytes, free_bytes(),
                      static_cast<int64_t>(properties_.totalGlobalMem));
    }
    check(status, purpose);
    return pointer;
  }
  void release(void* pointer) noexcept override { cudaFree(pointer); }

  void* allocate_host(int64_t bytes) override {
    void* pointer = nullptr;
    check(cudaMallocHost(&pointer, bytes > 0 ? bytes : 1), "reserving page-locked memory");
    return pointer;
  }
  void release_host(void* pointer) noexcept override { cudaFreeHost(pointer); }

  void upload(void* device, const void* host, int64_t bytes) override {
    check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_), "copying to it");
  }
  void download(void* host, const void* device, int64_t bytes) override {
    check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_), "copying from it");
  }
  void upload_and_wait(void* device, const void* host, int64_t bytes) override {
    upload(device, host, bytes);
    wait();
  }
  void fill_zero(void* device, int64_t bytes) override {
    check(cudaMemsetAsync(device, 0, bytes, stream_), "clearing memory");
  }
  void wait() override { check(cudaStreamSynchronize(stream_), "computing"); }

  std::unique_ptr<Graph> record(const std::function<void()>& enqueue) override {
    check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording a graph");
    cudaGraph_t graph = nullptr;
    try {
      enqueue();
    } catch (...) {
      cudaStreamEndCapture(stream_, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    check(cudaStreamEndCapture(stream_, &graph), "recording a graph");
    cudaGraphExec_t executable = nullptr;
    const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "making a graph");
    return std::make_unique<RecordedGraph>(executable);
  }
  void run(Graph& graph) override {
    check(cudaGraphLaunch(static_cast<RecordedGraph&>(graph).get(), stream_), "starting a graph");
  }

 private:
  cudaDeviceProp properties_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace

std::unique_lock<std::mutex> take_turn(CUstream_st* stream) {
  Turns& all = turns();
  std::unique_lock lock(all.mutex);
  if (all.last != nullptr && all.last != stream) {
    if (all.end == nullptr)
      check(cudaEventCreateWithFlags(&all.end, cudaEventDisableTiming), "making an event");
    check(cudaEventRecord(all.end, all.last), "marking the end of a turn");
    check(cudaStreamWaitEvent(stream, all.end, 0), "waiting for another stream");
  }
  all.last = stream;
  return lock;
}

void leave_turns(CUstream_st* stream) noexcept {
  Turns& all = turns();
  const std::lock_guard lock(all.mutex);
  if (all.last != stream) return;
  cudaStreamSynchronize(stream);
  all.last = nullptr;
}

std::unique_ptr<Device> open_device() {
  int count = 0, driver = 0, runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess &&
      driver > 0)
    throw_old_driver(driver, runtime);
  if (status != cudaSuccess) throw_no_gpu(cudaGetErrorString(status));
  if (count == 0) throw_no_gpu("none is visible");
  cudaDeviceProp properties{};
  check(cudaSetDevice(0), "being opened");
  check(cudaGetDeviceProperties(&properties, 0), "being opened");
  if (properties.major * 10 + properties.minor < kMinimumCapability)
    throw_old_gpu(properties.name, properties.major, properties.minor);
  return std::make_unique<CudaDevice>(properties);
}

}  // namespace whit::cuda
