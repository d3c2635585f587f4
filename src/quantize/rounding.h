// Rounding to a scheme's stored form without any search.
#pragma once

#include "base/thread_pool.h"
#include "quant/scheme.h"
#include "quant/weight.h"

namespace whit {

// int4, int8 and fp8 to nearest, bf16 where the scheme quantizes nothing; row by row, so that no
// f32 copy of the whole weight is made.
QuantizedTensor round_to_scheme(const WeightView& source, const QuantScheme& scheme,
                                ThreadPool& pool);

// w [N, K] f32.
WeightView f32_view(const Tensor& w);

}  // namespace whit
