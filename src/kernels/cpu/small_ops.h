// The rows of the table of small operations, one per ISA; a folder defines its row in small_ops.cc.
//
// What all rows share:
//   rms_norm   Σx² in a fixed order that depends on D alone, then (x · inverse) · weight.
//   quantize   codes, scales and sums equal ops/reference/quantize bit for bit.
//   silu_mul   relative error ≤ 8 · 2⁻²⁴ where e^−gate neither overflows nor vanishes (|gate| <
//   87). rope, add  plain products and sums: equal on every ISA. work       Row-wise operations
//   with int8 output give whole rows to workers. With one row it is
//              cheaper that every thread runs the operation as Worker{0, 1} into its own output
//              than that the others wait for one; nothing but the output is written, so that is
//              valid.
//   attention  small_ops_attention.h.
#pragma once

#include "kernels/cpu/table.h"

namespace whit::cpu {

namespace portable {
extern const SmallOps kSmallOps;
}
namespace avx2 {
extern const SmallOps kSmallOps;
}
namespace avx512 {
extern const SmallOps kSmallOps;
}

}  // namespace whit::cpu
