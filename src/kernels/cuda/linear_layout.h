// Where each weight of a packed linear lies. Shared by the packer (CPU) and the kernels.
//
// Low-bit formats are stored in tiles of 64 rows × kTileK of K, tiles of one row block in ascending
// K, then the next row block: one tile is one bulk copy of a warpgroup, a quarter of it (16 rows,
// "unit") 1 KB that one warp reads with two 16-byte loads a lane. Rows and K are padded; padding
// contributes zero.
//   tile   4 units of 1024 B, then (4 bits) the scale words of its 64 rows
//   unit   256 words of 32 bits: word = half·128 + pair·64 + row·8 + odd·4 + upper·2 + jj
//          for the row (row + 8·half), row < 8, lane t = 2·pair + odd of the four that share a row
//          kW8A8: word = half·128 + jj·64 + pair·32 + row·4 + odd·2 + upper, which is 16 codes
//          consecutive in K of eight rows after one another: the core matrices (PTX ISA 9.7.15)
//          that wgmma takes operand A in from shared memory
// A lane's words hold eight weights consecutive in K out of every 32, so that activations are read
// as they lie in memory, and a warpgroup's A fragment (wgmma, PTX ISA 9.7.15, m64k32 of 8 bits,
// m64k16 of 16 bits) is made of 8-byte reads, 256 contiguous bytes a warp.
//   kW4A8, kW4A8TwoLevel   kTileK 128: byte b, nibble i of a word: k = 64·i + 32·jj + 8·t + 4·upper
//   + b
//   kW4AFp8      kTileK 128, the same k: bits 0 … 2 of a code in nibble 4·i + b, a selector of prmt
//   as it is; bit 3 at the top of byte b, 4·i bits lower, which prmt makes a mask of
//   kW4A16   kTileK 128: half-word b, nibble i:      k = 32·i + 16·jj + 4·t + 2·upper + b
//   kW8A8    kTileK 64: byte b:                      k = 32·jj + 8·t + 4·upper + b
//   kW8A16   kTileK 64: half-word i, byte b of it:   k = 32·i + 16·jj + 4·t + 2·upper + b
// 4 bits: the scale word of (row, group) is the f16 scale in the low half and in the high half the
// zero point (kW4A8, kW4AFp8) or the bf16 number 128 + zero point (kW4A16); words of a tile are
// [unit][group][row % 8][row / 8], one group for group_size 128, else four of 32 (a group of 64 is
// stored twice: one kernel serves both). Two-level: the multiple in the low half, the zero point in
// the high one, and f32 steps [rows] after all tiles.  8 bits: f32 scales [rows] after all tiles.
// kBf16: rows as they are. kFp8: linear_dense.h.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define WHIT_HOST_DEVICE __host__ __device__
#else
#define WHIT_HOST_DEVICE
#endif

namespace whit::cuda {

constexpr int kTileRows = 64;
constexpr int kUnitRows = 16;
constexpr int kUnitBytes = 1024;

struct TileLayout {
  int bits;        // 4 or 8
  int tile_k;      // of K in a tile
  int groups;      // scale words of a row in a tile: 1, 4, or 0 for 8 bits
  int tiles;       // along K
  int row_blocks;  // of 64 rows
  int tile_bytes;

  WHIT_HOST_DEVICE int64_t block_bytes() const { return int64_t{tiles} * tile_bytes; }
  WHIT_HOST_DEVICE int64_t scales_offset() const { return row_blocks * block_bytes(); }
};

inline TileLayout tile_layout(int bits, int64_t n, int64_t k, int64_t group_size) {
  TileLayout layout{};
  layout.bits = bits;
  layout.tile_k = bits == 4 ? 128 : 64;
  layout.groups = bits != 4 ? 0 : group_size == 128 ? 1 : 4;
  layout.tiles = static_cast<int>((k + layout.tile_k - 1) / layout.tile_k);
  layout.row_blocks = static_cast<int>((n + kTileRows - 1) / kTileRows);
  layout.tile_bytes = 4 * kUnitBytes + kTileRows * 4 * layout.groups;
  return layout;
}

// Word of a unit that lane t of its row's four holds; `row` 0…15.
WHIT_HOST_DEVICE inline int unit_word(int row, int t, int upper, int jj) {
  return (row / 8) * 128 + (t / 2) * 64 + (row % 8) * 8 + (t % 2) * 4 + upper * 2 + jj;
}

// The same for kW8A8.
WHIT_HOST_DEVICE inline int unit_word_w8a8(int row, int t, int upper, int jj) {
  return (row / 8) * 128 + jj * 64 + (t / 2) * 32 + (row % 8) * 4 + (t % 2) * 2 + upper;
}

// In how many chunks K is summed, each of whole steps of kChunkStep (chunk c begins at step
// c · steps / chunks): part of the numerics, so it depends on the weight's shape alone.
// Enough for eight warps on each of 132 SMs where a warp takes one unit; 1, 2 or 4, the blocks of a
// cluster that wide kernels may share it among.
constexpr int64_t kChunkStep = 128;
inline int k_chunks(int64_t n, int64_t k) {
  const int64_t units = (n + kUnitRows - 1) / kUnitRows, steps = (k + kChunkStep - 1) / kChunkStep;
  int chunks = 1;
  while (chunks < 4 && units * chunks < 1056 && chunks * 2 <= steps) chunks *= 2;
  return chunks;
}

}  // namespace whit::cuda
