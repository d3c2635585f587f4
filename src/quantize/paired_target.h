// What a linear's weight should be rounded towards, where its inputs x̂ are those of a quantized
// copy: the W' whose outputs on x̂ make up best for what the roundings before it have changed.
//
//   W' = W + t·E[(y − W·x̂)·x̂ᵀ]·(E[x̂·x̂ᵀ] + λ·I)⁻¹,  0 ≤ t ≤ 1
// with y the wanted outputs: the regularized least-squares fit of y by x̂, as far (t) as it lowers
// the error on held-out tokens. λ is Hessian::kDamping of the mean energy of a channel.
#pragma once

#include <string>

#include "calibrate/observer.h"

namespace whit {

// What `cross` of the statistics holds (calibrate/paired_stream.h).
enum class Beside {
  kInputDifference,  // E[(x − x̂)·x̂ᵀ] [K, K]: wanted are W·x
  kWantedOutput,     // E[y·x̂ᵀ] [N, K]
};

struct PairedTarget {
  Tensor weight;        // f32 [N, K]
  double share = 0;     // t
  std::string note;     // where nothing was corrected: why
  bool failed = false;  // … because the statistics could not be factored
};
PairedTarget paired_target(Tensor w, const InputStats& input, Beside beside, Matmul& matmul);

}  // namespace whit
