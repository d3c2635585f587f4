// Error-compensated rounding of one linear: GPTQ (Frantar et al., ICLR 2023) in the order of
// falling input energy, with each group's scale and zero fixed beforehand, so that the stored
// layout is that of plain rounding; then coordinate descent over the codes and least-squares
// scales, both of which never raise the error in the metric of quantize/hessian.h.
#pragma once

#include "quant/scheme.h"
#include "quant/weight.h"
#include "quantize/hessian.h"

namespace whit {

// Steps beyond GPTQ itself.
struct Compensation {
  bool search_ranges = true;  // each group's range by the error that rounding in it costs
  int sweeps = 8;             // of coordinate descent and scale refits, at most; 0: none
};

struct CompensatedWeight {
  QuantizedTensor weight;
  Tensor values;  // f32 [N, K], what the codes stand for
};

// w f32 [N, K], args the scheme's. hessian.factored() is required.
CompensatedWeight round_compensated(const Tensor& w, const Hessian& hessian, const QuantArgs& args,
                                    const Compensation& options, Matmul& matmul);

// GPTQ without further steps for W·s, over inputs x/s to which the rounding of activations adds
// `noise`: the values [N, K] of W·s and their error. s [K] or null for ones; `hessian` is of the
// inputs before s, without noise. Cheap enough to search factors with.
struct TrialRounding {
  Tensor values;
  double error;
};
TrialRounding try_compensated(const Tensor& w, const float* s, const Hessian& hessian, double noise,
                              const QuantArgs& args, Matmul& matmul);

}  // namespace whit
