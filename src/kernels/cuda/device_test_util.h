// What tests of kernels on the device itself share.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "kernels/cuda/launch.h"

namespace whit::cuda {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Device memory of one test.
class Memory {
 public:
  ~Memory() {
    for (void* p : all_) cudaFree(p);
  }
  void* bytes(size_t size, int fill) {
    void* p = nullptr;
    check(cudaMalloc(&p, size + 256), "test memory");
    all_.push_back(p);
    check(cudaMemset(p, fill, size + 256), "test memory");
    return p;
  }
  template <typename T>
  T* copy(const std::vector<T>& from) {
    T* p = static_cast<T*>(bytes(from.size() * sizeof(T), 0));
    check(cudaMemcpy(p, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
    return p;
  }

 private:
  std::vector<void*> all_;
};

}  // namespace whit::cuda
