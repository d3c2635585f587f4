// Oracle of rms_norm: sums in double, one rounding to f32 at the end; int8 output as in
// reference::quantize.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

void rms_norm(const RmsNormArgs& args);

}  // namespace whit::reference
