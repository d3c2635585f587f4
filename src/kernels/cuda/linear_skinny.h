// The linear kernels on mma.sync: any GPU from SM 80 up, any M; the fast ones for few rows.
//
// Every warp streams its own units of 16 weight rows from global memory into registers, four tiles
// ahead, and needs nothing of other warps until its sums are done: no pipeline barriers, so that
// all of the SM's loads stay in flight. Weights are the A operand, tokens the B operand's columns.
// Bound: the weight's bytes at the read bandwidth plus launch and first-byte latency, while
// M ≤ 16; above, tokens are taken 32 at a time and weights come from L2.
#pragma once

#include "kernels/cuda/linear.h"

namespace whit::cuda {

struct DeviceInfo {
  int sms = 0;
  int capability = 0;  // 90 is SM 9.0
};

// Whether run_skinny takes ActivatedOutput of a product that makes its rows.
bool skinny_activates(const LinearWeight& weight);

// weight.format is one of the tiled ones. Same contract as LinearRunner::run.
void run_skinny(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream);

}  // namespace whit::cuda
