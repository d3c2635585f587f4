// Numbers of f32 rounded to bf16, side by side.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace whit::cuda {

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}
// Eight of them, to 16 bytes that are aligned.
__device__ __forceinline__ void store_bf16(const float (&v)[8], __nv_bfloat16* to) {
  *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                             pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

}  // namespace whit::cuda
