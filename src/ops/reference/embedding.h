// Oracle of the embedding lookup, through dequantize_rows.
#pragma once

#include "ops/ops.h"

namespace whit::reference {

void embedding(const EmbeddingArgs& args);

}  // namespace whit::reference
