// Reductions over a block, in an order that depends on the number of its threads alone.
#pragma once

#include <cuda_runtime.h>

namespace whit::cuda {

struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
// The larger one; NaN where one is.
struct MaxNan {
  __device__ float operator()(float a, float b) const { return a >= b || a != a ? a : b; }
};

// The same result in every thread. `shared` has 32 floats; a whole number of warps.
template <typename Combine>
__device__ __forceinline__ float block_reduce(float value, float* shared, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, offset));
  const int warps = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float result = shared[0];
  for (int warp = 1; warp < warps; ++warp) result = combine(result, shared[warp]);
  return result;
}

}  // namespace whit::cuda
