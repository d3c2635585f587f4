// Reductions over a block, in an order that depends on the number of its threads alone.
#pragma once

#include <cuda_runtime.h>

namespace whit::cuda {

struct Add {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// The larger one; NaN where one is. One instruction, for which C++ has no name.
struct MaxNan {
  __device__ float operator()(float a, float b) const {
    float larger;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
    return larger;
  }
};

template <typename T, typename Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  return value;
}

// The same result in every thread. `shared` has 32 floats; a whole number of warps; zero changes no
// result of `combine`.
template <typename Combine>
__device__ __forceinline__ float block_reduce(float value, float* shared, Combine combine) {
  value = warp_reduce(value, combine);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_reduce(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f, combine);
}

}  // namespace whit::cuda
