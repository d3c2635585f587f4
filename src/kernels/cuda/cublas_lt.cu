#include <cuda_runtime.h>
#include <dlfcn.h>

#include <string>

#include "base/error.h"
#include "kernels/cuda/cublas_lt.h"

namespace whit::cuda {
namespace {

template <typename F>
void resolve(void* library, const char* symbol, F& function) {
  function = reinterpret_cast<F>(dlsym(library, symbol));
  if (function == nullptr)
    throw Error(ErrorKind::kUnsupported, "cuBLASLt: the library has no {}", symbol);
}

// Also where the first product comes while a graph is captured.
void* allocate_workspace() {
  void* workspace = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  const cudaError_t allocated = cudaMalloc(&workspace, kCublasWorkspaceBytes);
  cudaThreadExchangeStreamCaptureMode(&mode);
  if (allocated != cudaSuccess)
    throw Error(ErrorKind::kResource, "cuBLASLt: {} MiB of GPU memory for its workspace: {}",
                kCublasWorkspaceBytes >> 20, cudaGetErrorString(allocated));
  return workspace;
}

}  // namespace

CublasLt open_cublas_lt() {
  const std::string name = "libcublasLt.so." + std::to_string(CUDART_VERSION / 1000);
  void* handle = nullptr;
  for (const std::string& path : {name, "/usr/local/cuda/lib64/" + name})
    if (handle == nullptr) handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr)
    throw Error(ErrorKind::kUnsupported,
                "dense products on the GPU need {}, which the loader does not find: install "
                "cuBLAS of CUDA {} or add its folder to LD_LIBRARY_PATH",
                name, CUDART_VERSION / 1000);
  CublasLt library{};
  resolve(handle, "cublasLtCreate", library.create);
  resolve(handle, "cublasLtDestroy", library.destroy);
  resolve(handle, "cublasLtMatmulDescCreate", library.desc_create);
  resolve(handle, "cublasLtMatmulDescDestroy", library.desc_destroy);
  resolve(handle, "cublasLtMatmulDescSetAttribute", library.desc_set);
  resolve(handle, "cublasLtMatrixLayoutCreate", library.layout_create);
  resolve(handle, "cublasLtMatrixLayoutDestroy", library.layout_destroy);
  resolve(handle, "cublasLtMatrixLayoutSetAttribute", library.layout_set);
  resolve(handle, "cublasLtMatmulPreferenceCreate", library.preference_create);
  resolve(handle, "cublasLtMatmulPreferenceDestroy", library.preference_destroy);
  resolve(handle, "cublasLtMatmulPreferenceSetAttribute", library.preference_set);
  resolve(handle, "cublasLtMatmulAlgoGetHeuristic", library.heuristic);
  resolve(handle, "cublasLtMatmul", library.matmul);
  return library;
}

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw Error(ErrorKind::kResource, "cuBLASLt: {}: status {}", what, static_cast<int>(status));
}

CublasSession::CublasSession() {
  check(library.create(&handle), "create");
  try {
    workspace = allocate_workspace();
  } catch (...) {
    library.destroy(handle);
    throw;
  }
}

CublasSession::~CublasSession() {
  cudaFree(workspace);
  library.destroy(handle);
}

}  // namespace whit::cuda
