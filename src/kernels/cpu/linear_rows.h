// The linear half of the kernel table: the rows that each ISA's files define.
#pragma once

#include "kernels/cpu/table.h"

namespace whit::cpu {

extern const LinearKernel kAmxLinearW4A16, kAmxLinearW8A16, kAmxLinearW4A8, kAmxLinearW8A8,
    kAmxLinearW4A8TwoLevel;

extern const LinearKernel kAvx512LinearFloat[3];
extern const LinearKernel kAvx512LinearW4A16, kAvx512LinearW8A16, kAvx512LinearW4A8,
    kAvx512LinearW8A8, kAvx512LinearW4A8TwoLevel;

extern const LinearKernel kAvx2LinearFloat[3];
extern const LinearKernel kAvx2LinearW4A8, kAvx2LinearW8A8, kAvx2LinearW4A8TwoLevel;
extern const LinearKernel kAvx2LinearW4A16, kAvx2LinearW8A16;

extern const LinearKernel kPortableLinearFloat[5];
extern const LinearKernel kPortableLinearInt8[3];

}  // namespace whit::cpu
