// Oracles of silu_mul (in double, one rounding) and add.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

void silu_mul(const SiluMulArgs& args);
void add(const AddArgs& args);

}  // namespace whit::reference
