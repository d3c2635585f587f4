// The CPU's calibrate/accelerator.h: GroupErrors.
#pragma once

#include "calibrate/accelerator.h"

namespace whit {

std::unique_ptr<GroupErrors> cpu_group_errors(const GroupErrorsInput& input, Matmul& matmul);

// W·s rounded to the scheme's weight format and back, [N, K]: row-parallel.
void quantize_round_trip(const Tensor& w, const float* s, const Tensor* clip, const QuantArgs& args,
                         ThreadPool& pool, Tensor& out);

}  // namespace whit
