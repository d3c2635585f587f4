// The rows of the table of small operations, one per ISA; each ISA's folder defines its row in
// small_ops.cc.
//
// Contracts that all rows share:
//   rms_norm     Σx² in a fixed order that depends on D alone, then (x · inverse) · weight.
//   quantize     codes, scales and sums equal ops/reference/quantize bit for bit; sums of other ops
//   differ between ISAs. silu_mul     |relative error| ≤ 6 eps (eps = 2⁻²⁴) beside the rounding of
//   an f32 exp, for |gate| < 80. rows         a row-wise op with int8 output gives whole rows to
//   workers. rms_norm with Worker{0, 1} may be run by
//                every thread into its own output: cheaper than one thread's work and a barrier
//                when M is 1.
//   attention    see small_ops_attention.h.
#pragma once

#include "kernels/cpu/table.h"

namespace whit::cpu {

namespace portable {
extern const SmallOps kSmallOps;
}

}  // namespace whit::cpu
