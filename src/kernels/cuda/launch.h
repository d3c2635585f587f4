// Launching and error checks shared by CUDA sources.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "base/error.h"

namespace whit::cuda {

// Throws kResource naming what was asked of the device.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw Error(ErrorKind::kResource, "CUDA: {}: {}", what, cudaGetErrorString(status));
}

// Whether kernels compiled here wait for the one before them: machine code of SM 9.0 does. What the
// driver compiles from the PTX of SM 8.0, for other GPUs, has no such instruction.
inline bool kernels_wait() {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "capability");
  return major == 9;
}

// Launches a kernel that may start before the one in front of it on the stream has ended
// (programmatic dependent launch, on Hopper): the kernel must call wait_for_previous_kernel before
// it reads what others write, or writes anything. In clusters of `cluster` blocks, on Hopper too.
template <typename... Args>
void launch_clusters(void (*kernel)(Args...), dim3 grid, int cluster, dim3 block,
                     size_t shared_bytes, cudaStream_t stream, std::type_identity_t<Args>... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  config.attrs = attributes;
  config.numAttrs = !kernels_wait() ? 0 : cluster == 1 ? 1 : 2;
  check(cudaLaunchKernelEx(&config, kernel, args...), "launch");
}
template <typename... Args>
void launch_dependent(void (*kernel)(Args...), dim3 grid, dim3 block, size_t shared_bytes,
                      cudaStream_t stream, std::type_identity_t<Args>... args) {
  launch_clusters<Args...>(kernel, grid, 1, block, shared_bytes, stream, args...);
}

}  // namespace whit::cuda
