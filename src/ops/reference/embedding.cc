#include "ops/reference/embedding.h"

namespace whit::reference {

void embedding(const EmbeddingArgs& args) {
  for (int64_t t = 0; t < args.t; ++t)
    dequantize_rows(args.table, args.ids[t], args.ids[t] + 1, args.out + t * args.out_stride);
}

}  // namespace whit::reference
