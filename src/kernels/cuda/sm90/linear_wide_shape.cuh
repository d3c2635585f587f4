// What a launch of linear_wide.cuh is told, and what its shared memory holds.
#pragma once

#include <algorithm>

#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/sm90/linear_operands.cuh"
#include "kernels/cuda/sm90/shared_memory.h"

namespace whit::cuda {

constexpr int kWideStepK = 128;    // of K a pipeline stage: one scale group
constexpr int kWideConsumers = 2;  // warpgroups, of 64 rows each
constexpr int kWideMostParts = 4;  // of k_chunks
constexpr int kWideThreads = 128 * (kWideConsumers + 1);
// Floats between the rows of staged sums: 4 more than a tile's 64 rows, so that the writes of a
// warp (8 rows × 4 columns, 2 apart) fall into 32 banks.
constexpr int kWidePitch = kTileRows + 4;

struct WideParams {
  const uint8_t* weight;
  TileLayout layout;
  Epilogue epilogue;
  int m, n;
  int steps;        // along K
  int chunks;       // of K
  int parts;        // blocks of a cluster that share K: a divisor of chunks
  int sharers;      // blocks of a cluster that share tokens: 1 or 2, each half of the copying
  int token_tiles;  // fastest, so that neighbours share weights
  int tiles;        // of a cluster: the whole ones, then halves
  int whole_tiles;  // a half has rows for the first warpgroup of each block alone
  bool vectors;     // whether rows of y and of the residual can be moved in 16-byte vectors
  bool direct;      // y is bf16 in such vectors and nothing is added to it but a bias
};

// kPiece: tokens whose sums are staged at once; all where K has chunks.
template <LinearFormat format, int kTokens, int kPiece>
struct WideShape : OperandTraits<format> {
  using T = OperandTraits<format>;
  static constexpr int kTileTokens = kTokens;
  // Whether weights are operands as they lie in shared memory.
  static constexpr bool kShared = format == LinearFormat::kW8A8;
  // Groups of products are halves of a tile's tokens, one multiplied while the other is scaled.
  static constexpr int kHalves = T::kGrouped && kTokens == 128 ? 2 : 1;
  // Sets of A operands: with two, the next step's are unpacked while this one's are multiplied; one
  // is what the registers of 128 tokens × 8 operands leave room for.
  static constexpr int kSets = kHalves == 2 && !T::kCodes ? 1 : 2;
  static constexpr int kUnitTokens = kTokens / kHalves;
  static constexpr int kValues = kUnitTokens / 2;  // of a thread in a unit
  // Bytes of a warpgroup's weights in a stage: a tile of 4 bits and its scales, two of 8 bits.
  static constexpr int kWeightBytes = T::kInt4 ? 4 * kUnitBytes + kTileRows * 4 : 8 * kUnitBytes;
  static constexpr int kRunBytes = kTokens * 128;
  static constexpr int kInputBytes = T::kRuns * kRunBytes;
  static constexpr int kStageBytes =
      (kInputBytes + kWideConsumers * kWeightBytes + 1023) / 1024 * 1024;
  // Chunks of K whose sums a block of a cluster can stage.
  static constexpr int kAreas = !T::kExact && kTokens <= 64 ? 2 : 1;
  static constexpr int kAreaFloats = kPiece * kWidePitch;
  // Tokens whose rows of bf16 are staged at once.
  static constexpr int kDirectTokens = std::min(kTokens, 64);
  // Of one warpgroup: sums or rows of bf16.
  static constexpr int kSumBytes = std::max(kAreas * kAreaFloats * 4, kDirectTokens* kTileRows * 2);
  static constexpr int kScaleBytes = T::kCodes ? kTokens * 4 : 0;  // of the tokens
  // As many stages as fit beside the sums, 1 KB of barriers and 1 KB of alignment.
  static constexpr int kStages = std::min(
      8, (kMostSharedBytes - 2048 - kScaleBytes - kWideConsumers * kSumBytes) / kStageBytes);
  static constexpr int kSharedBytes =
      2048 + kScaleBytes + kStages * kStageBytes + kWideConsumers * kSumBytes;
};

}  // namespace whit::cuda
