// A model in the caller's memory as a Checkpoint.
#pragma once

#include "checkpoint/checkpoint.h"
#include "whit/types.h"

namespace whit {

// The tensors' bytes stay the caller's. Throws kInvalidArgument for an unknown dtype, a size that
// shape and dtype do not imply, or a name that comes twice; kInvalidData for JSON that is none.
Checkpoint checkpoint_of(const StateDict& model);

}  // namespace whit
