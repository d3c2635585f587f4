// The operands of warpgroup products in linear kernels: packed weights as A, unpacked in registers,
// and activations as B, through a tensor map.
#pragma once

#include <type_traits>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_epilogue.cuh"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_unpack.cuh"
#include "kernels/cuda/sm90/ptx_sm90.cuh"
#include "kernels/cuda/sm90/tensor_map.h"

namespace whit::cuda {

constexpr int kUnitScaleBytes = 4 * kUnitRows;  // of 4 bits in groups of 128, in a tile

constexpr bool is_8_bits(LinearFormat format) {
  return format == LinearFormat::kW8A8 || format == LinearFormat::kW8A16;
}
constexpr bool is_bf16(LinearFormat format) {
  return format == LinearFormat::kW4A16 || format == LinearFormat::kW8A16;
}

template <LinearFormat format>
struct OperandTraits {
  static constexpr LinearFormat kFormat = format;
  static constexpr bool kInt4 = !is_8_bits(format);
  static constexpr bool kCodes = has_token_scales(format);  // what inputs are
  static constexpr bool kInteger = kCodes && format != LinearFormat::kW4AFp8;
  // Whether each group's sums are scaled before the next one's are added.
  static constexpr bool kGrouped = !has_row_scales(format);
  static constexpr bool kExact = has_exact_sums(format);
  using Product = std::conditional_t<kInteger, int, float>;
  // Swizzled rows of 128 bytes of inputs that 128 of K take.
  static constexpr int kRuns = kCodes ? 1 : 2;
  static constexpr int kMmas = 4 * kRuns;  // along 128 of K
};

// The operand in a stage of that in the first: only the lower half of its description differs.
template <int kStageBytes>
__device__ __forceinline__ uint64_t operand_in_stage(uint64_t first, int stage) {
  return first >> 32 << 32 |
         (static_cast<uint32_t>(first) + static_cast<uint32_t>(stage) * (kStageBytes / 16));
}

// Copies 64 rows' weights of 128 of K. An odd last tile of 64 of K takes the second half's place
// too: finite bytes, whose inputs are zero.
template <int kBytes>
__device__ __forceinline__ void copy_weights(uint32_t to, const uint8_t* from, bool odd_last,
                                             uint32_t barrier) {
  if (!odd_last) {
    bulk_copy(to, from, kBytes, barrier);
  } else {
    bulk_copy(to, from, kBytes / 2, barrier);
    bulk_copy(to + kBytes / 2, from, kBytes / 2, barrier);
  }
}

// A thread's packed words of a warp's 16 rows × 128 of K, or of one half of the rows, 8 of them,
// and what of them is an A operand.
template <LinearFormat format, int kHalves = 2>
struct TileWords {
  uint2 codes[is_8_bits(format) ? 2 : 1][kHalves][2];  // [tile of 8 bits][row half][pair]
  uint32_t scales[2];                                  // of 4 bits: rows r and r + 8

  // unit: the warp's in the first tile; the second of 8 bits lies kTileDistance behind.
  // unit_scales: its scale words. Of the second half of the rows: both 512 and 4 bytes on.
  template <int kTileDistance>
  __device__ __forceinline__ void load(const uint8_t* unit, const uint8_t* unit_scales, int lane) {
#pragma unroll
    for (int tile = 0; tile < static_cast<int>(sizeof(codes) / sizeof(codes[0])); ++tile)
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair)
          codes[tile][half][pair] = *reinterpret_cast<const uint2*>(
              unit + tile * kTileDistance + lane * 8 + half * 512 + pair * 256);
    if constexpr (is_8_bits(format)) return;
    if constexpr (kHalves == 2) {
      const uint2 both = *reinterpret_cast<const uint2*>(unit_scales + lane / 4 * 8);
      scales[0] = both.x, scales[1] = both.y;
    } else {
      scales[0] = *reinterpret_cast<const uint32_t*>(unit_scales + lane / 4 * 8);
    }
  }
};

// What the words of a step are as A operands. Where a warp has half of the rows, those of the other
// half stay as they are made: zero.
template <LinearFormat format, int kHalves = 2>
struct TileFragments {
  static constexpr int kMmas = OperandTraits<format>::kMmas;
  uint32_t a[kMmas][4];

  template <bool kZeroPoints>
  __device__ __forceinline__ void unpack(const TileWords<format, kHalves>& words) {
#pragma unroll
    for (int mma = 0; mma < kMmas; ++mma)
#pragma unroll
      for (int half = 0; half < kHalves; ++half)
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const uint2 both = words.codes[is_8_bits(format) ? mma / (kMmas / 2) : 0][half][pair];
          const uint32_t word = mma % 2 == 0 ? both.x : both.y;
          const uint32_t scale_word = words.scales[half];
          uint32_t& to = a[mma][2 * pair + half];
          if constexpr (format == LinearFormat::kW4A8)
            to = int8_of_nibbles<kZeroPoints>(word, mma / 2, zero_bytes_of(scale_word));
          else if constexpr (format == LinearFormat::kW4A8TwoLevel)
            to = int8_of_two_level(word, mma / 2, multiple_of(scale_word),
                                   two_level_offset_of(scale_word));
          else if constexpr (format == LinearFormat::kW4AFp8)
            to = E4m3Codes<kZeroPoints>(scale_word).of(word, mma / 2);
          else if constexpr (format == LinearFormat::kW4A16)
            to = bf16_of_nibbles(word, mma / 2, minus_zero_of(scale_word));
          else
            to = bf16_of_bytes(word, mma / 2 % 2);
        }
  }
};

template <LinearFormat format, typename Products>
__device__ __forceinline__ void multiply_add(Products& products, const uint32_t (&a)[4], uint64_t b,
                                             int accumulate) {
  if constexpr (format == LinearFormat::kW4AFp8)
    wgmma_e4m3(products, a, b, accumulate);
  else
    wgmma(products, a, b, accumulate);
}

// Of x, in boxes of 128 bytes × rows, swizzled by 128 bytes; what lies past M or K is zero.
inline CUtensorMap input_map(const LinearArgs& args, int rows) {
  const bool bf16 = input_of(args.weight.format) == LinearInput::kBf16;
  const unsigned element = bf16 ? 2 : 1;
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(args.weight.k),
                               static_cast<cuuint64_t>(args.m)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(args.x_stride) * element};
  const cuuint32_t box[2] = {128 / element, static_cast<cuuint32_t>(rows)}, ones[2] = {1, 1};
  if (tensor_map_encoder()(
          &map, bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, 2,
          const_cast<void*>(args.x), sizes, stride, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
          CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
          CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    throw Error(ErrorKind::kResource, "CUDA: no tensor map of [{}, {}], stride {}", args.m,
                args.weight.k, args.x_stride);
  return map;
}

}  // namespace whit::cuda
