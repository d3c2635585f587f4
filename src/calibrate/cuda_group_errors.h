// GroupErrors on a GPU: a group's weights, both splits' Gram matrices and one candidate are
// resident, products are made in blocks of columns.
#pragma once

#include "calibrate/accelerator.h"
#include "calibrate/cuda_memory.h"
#include "kernels/cuda/product_f32.h"

namespace whit {

std::unique_ptr<GroupErrors> cuda_group_errors(CudaMemory& memory, cuda::ProductF32& product,
                                               const GroupErrorsInput& input);

}  // namespace whit
