// The first half of pack_linear, for whoever packs many weights at once.
#pragma once

#include "kernels/cpu/table.h"

namespace whit::cpu {

// Checks that the kernel packs this stack; returns its packed form without data, which takes
// payload_bytes. kernel.pack fills them, with as many workers as the caller likes.
PackedWeight lay_out(const LinearKernel& kernel, std::span<const WeightView> parts);

}  // namespace whit::cpu
