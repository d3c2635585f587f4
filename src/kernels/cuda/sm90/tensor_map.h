// The driver's function that encodes tensor maps, found when first needed: nothing links to the
// driver.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "kernels/cuda/launch.h"

namespace whit::cuda {

// Throws kUnsupported where the driver is too old.
inline auto tensor_map_encoder() {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* symbol = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &symbol, 12000,
                                           cudaEnableDefault, &found),
          "cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess)
      throw Error(ErrorKind::kUnsupported, "CUDA: the driver is too old for tensor maps (12.0)");
    return reinterpret_cast<Encode>(symbol);
  }();
  return encode;
}

}  // namespace whit::cuda
