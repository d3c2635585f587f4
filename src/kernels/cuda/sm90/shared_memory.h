// Shared memory of an SM of compute capability 9.0: 228 KB, of which each block that runs there
// takes a kilobyte for the system.
#pragma once

namespace whit::cuda {

constexpr int kMostSharedBytes = 227 * 1024;                     // of a block alone on its SM
constexpr int kHalfSharedBytes = (kMostSharedBytes - 1024) / 2;  // of each of two

}  // namespace whit::cuda
