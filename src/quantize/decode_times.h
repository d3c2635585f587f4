// What a token costs to decode on this machine, by scaling group and scheme: the basis of
// --target-decode-tps.
#pragma once

#include "quantize/sensitivity.h"

namespace whit {

// Times the product of one row for every candidate of every group, from weights that are not in
// the caches, and sets their `seconds`. Returns the seconds of all else in decoding one token
// (attention over a short context, norms, the int8 head), from a measured step of a whole model.
// Takes about a quarter of a minute and the memory of a quantized model.
double measure_decode_times(const Model& model, std::vector<GroupSensitivity>& groups, cpu::Isa isa,
                            ThreadPool& pool);

}  // namespace whit
