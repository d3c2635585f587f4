// What becomes of gates and ups whose product activates them (ActivatedOutput).
#pragma once

#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/row_values.cuh"

namespace whit::cuda {

// silu(gate) · up of two scaled sums, of these columns of the product: as a kernel of its own makes
// it of rows of bf16.
__device__ __forceinline__ float activated(const Epilogue& epilogue, float gate, float up,
                                           int gate_column, int up_column) {
  const auto half_of = [&](float sum, int column) {
    if (epilogue.bias != nullptr) sum = __fadd_rn(sum, epilogue.bias[column]);
    return __bfloat162float(__float2bfloat16_rn(sum));
  };
  const float rounded_gate = half_of(gate, gate_column);
  return silu_mul(rounded_gate, half_of(up, up_column));
}
// Raises a row's largest magnitude to that of the lanes that have the same column of a product's
// sums; `stores`: of one of them.
__device__ __forceinline__ void raise_magnitude(uint32_t* magnitude, float largest, bool stores) {
#pragma unroll
  for (int offset = 4; offset < 32; offset *= 2)
    largest = MaxNan{}(__shfl_xor_sync(0xffffffffu, largest, offset), largest);
  // Of numbers that are not negative the order of bits is theirs, and NaNs are above them.
  if (stores) atomicMax(magnitude, __float_as_uint(largest));
}

}  // namespace whit::cuda
