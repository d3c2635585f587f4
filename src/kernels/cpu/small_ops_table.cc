// The table of small operations, best instruction set first.
#include <array>

#include "kernels/cpu/amx/attention.h"
#include "kernels/cpu/small_ops.h"

namespace whit::cpu {
namespace {

// Tiles are for attention alone.
SmallOps amx_row() {
  SmallOps row = avx512::kSmallOps;
  row.name = "amx";
  row.isa = Isa::kAmx;
  row.attention_scratch_bytes = amx::attention_scratch_bytes;
  row.attention = amx::attention;
  row.attention_merge = amx::attention_merge;
  return row;
}

}  // namespace

// Best ISA first.
std::span<const SmallOps> small_ops_table() {
  static const std::array<SmallOps, 4> rows = {amx_row(), avx512::kSmallOps, avx2::kSmallOps,
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
