// The table of small operations, best instruction set first.
#include <array>

#include "kernels/cpu/small_ops.h"

namespace whit::cpu {

// Best ISA first.
std::span<const SmallOps> small_ops_table() {
  static const std::array<SmallOps, 3> rows = {avx512::kSmallOps, avx2::kSmallOps,
                                               portable::kSmallOps};
  return rows;
}

const SmallOps& small_ops(Isa isa) {
  const std::span<const SmallOps> rows = small_ops_table();
  for (const SmallOps& row : rows)
    if (row.isa <= isa) return row;
  return rows.back();
}

}  // namespace whit::cpu
