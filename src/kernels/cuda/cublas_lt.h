// cuBLASLt, opened when first needed, so that a program without it starts and says what is missing.
#pragma once

#include <cublasLt.h>

namespace whit::cuda {

// 32 MiB is what cuBLAS's documentation recommends for Hopper.
inline constexpr size_t kCublasWorkspaceBytes = size_t{32} << 20;

struct CublasLt {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmul) matmul;
};

// Throws kUnsupported, saying where it was looked for, when there is no cuBLASLt of the toolkit's
// major version.
CublasLt open_cublas_lt();

// Throws kResource, naming what was asked.
void check(cublasStatus_t status, const char* what);

// The library with a handle and a workspace for products. Throws as open_cublas_lt, and kResource.
struct CublasSession {
  CublasSession();
  ~CublasSession();
  CublasSession(const CublasSession&) = delete;
  CublasSession& operator=(const CublasSession&) = delete;

  CublasLt library = open_cublas_lt();
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;  // kCublasWorkspaceBytes of device memory
};

}  // namespace whit::cuda
