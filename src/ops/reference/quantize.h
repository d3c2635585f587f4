// Oracle of int8 activation quantization (the formula beside Int8Rows in ops/ops.h). Every kernel
// gives exactly these codes, sums and scales for the same input: no sum of floats is involved.
//   scale = absmax / 127, one f32 division; rows whose scale would be subnormal get scale 0 and
//   codes 0. A NaN or infinity in a row makes its scale NaN or infinite, so that it stays visible
//   in the products.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

// Writes row `row` of q from x[K].
void quantize_row(const float* x, int64_t k, const Int8Rows& q, int64_t row);
void quantize(const QuantizeArgs& args);

}  // namespace whit::reference
