// Oracle of rotary embedding (Su et al. 2021), HF's half-split pairing: products in double, one
// rounding.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

void rope(const RopeArgs& args);

}  // namespace whit::reference
