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

// The same of e4m3 activations: y [K], which may be x, becomes x rounded to e4m3 numbers of one
// scale and widened again.
//   scale = absmax / 448, or static_scale where that is above 0;  y = e4m3(x · (1 / scale)) ·
//   scale, each step rounded to f32. Rows whose scale would be subnormal become 0; where a
//   value is NaN or infinite none of its row is finite, or with a static scale it is −448 · scale.
void round_row_to_fp8(const float* x, int64_t k, float static_scale, float* y);

}  // namespace whit::reference
