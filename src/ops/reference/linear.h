// The meaning of a linear, from canonical weights and in double precision: the oracle of every
// kernel's test.
//
//   f32 activations    y[m, n] = Σ_k w[n, k] · x[m, k] + bias[n] + residual[m, n],  w as
//   quant/weight.h defines it int8 activations   the same with x[m, k] = q[m, k] · scale[m]
//
// Order of a kernel's sums (part of the contract: a row's result depends on neither M nor the
// number of threads):
//   f32 activations           one chain per output, k ascending; int8_channel multiplies the sum by
//   its scale at the end int8 × int4_group         exact int32 within a group, groups ascending in
//   one f32 chain, then · x_scale int8 × int8_channel       exact int32 over K, then one f32
//   product with (w_scale · x_scale) then                      (sum + bias) + residual
#pragma once

#include "ops/ops.h"

namespace whit::reference {

struct LinearArgs {
  WeightView weight;
  int64_t m;
  const float* x;  // [M, K], or null: q is used
  int64_t x_stride;
  Int8Rows q;
  const float* bias;      // [N] or null
  const float* residual;  // [M, N] or null
  int64_t residual_stride;
  double* y;          // [M, N]
  double* magnitude;  // [M, N] or null: the sum of the terms' absolute values, for error bounds
};

void linear(const LinearArgs& args);

}  // namespace whit::reference
