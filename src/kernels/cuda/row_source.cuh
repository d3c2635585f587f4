// Rows of activations made by each block of a product for itself, or by each of its warps, in
// shared memory: while the first weights are on their way, where a kernel before it would be waited
// for. The bits are those of rows.cu.
#pragma once

#include "kernels/cuda/linear.h"
#include "kernels/cuda/row_values.cuh"

namespace whit::cuda {

// Shared memory of one made row, and of what making it needs.
__host__ __device__ inline int made_row_bytes(int64_t k, int value_bytes = 1) {
  return static_cast<int>((k * value_bytes + 15) / 16 * 16);
}
struct RowScratch {
  float reduce[2][32];
  float scale[kMostMadeRows];
};

// Pieces of eight values that a thread keeps in registers.
constexpr int kKeptPieces = 4;

template <LinearInput input>
constexpr CodeType kCodeType = input == LinearInput::kE4m3 ? CodeType::kE4m3 : CodeType::kInt8;

// A short row that each warp makes for itself: no barrier of the block, and one wait for memory, as
// a norm's weights are asked for before the kernel ahead has ended. A warp writes the columns
// `from` … `to` that it multiplies, multiples of 8; of activated values, whose scale is known, it
// reads no others either, and at most kMostWarpRow.
template <LinearInput input>
class WarpRows {
 public:
  __device__ __forceinline__ WarpRows(const RowSource& source, int k, int from, int to)
      : source_(source),
        k_(k),
        norm_(source.kind == RowSource::Kind::kRmsNorm),
        activated_(source.kind == RowSource::Kind::kActivated),
        from_(activated_ ? from : 0),
        to_(activated_ ? min(to, k) : k),
        multiplied_from_(from),
        multiplied_to_(min(to, k)) {
    if (!norm_) return;
    reciprocal_ = 1.0f / static_cast<float>(k);
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece)
      if (column(piece) < k) load(weight_[piece], source.weight, column(piece), k);
  }

  // Writes row `row`; returns its scale. The warp meets before it is read.
  __device__ __forceinline__ float make(int64_t row, void* out) const {
    const auto* floats = static_cast<const float*>(source_.x) + row * source_.x_stride;
    const auto* halves = static_cast<const __nv_bfloat16*>(source_.x) + row * source_.x_stride;
    float v[kPieces][8], magnitude = 0;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int j = 0; j < 8; ++j) v[piece][j] = 0;
      if (column(piece) >= to_) continue;
      if (norm_ || activated_)
        load(v[piece], floats, column(piece), k_);
      else
        load(v[piece], halves, column(piece), k_);
    }
    if (activated_) magnitude = __uint_as_float(source_.magnitude[row]);
    if (norm_) {
      // A piece is all that a thread of the kernel that makes rows alone adds up, and lanes with
      // theirs are one of its warps.
      static_assert(kPieces == 4);
      float squares[kPieces] = {};
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
        for (int j = 0; j < 8; ++j) squares[piece] = fmaf(v[piece][j], v[piece][j], squares[piece]);
        squares[piece] = warp_reduce(squares[piece], Add{});
      }
      const float sum = (squares[0] + squares[2]) + (squares[1] + squares[3]);
      const float mean = divide(sum, static_cast<float>(k_), reciprocal_);
      const float factor = 1.0f / sqrtf(mean + source_.eps);
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece)
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (column(piece) < k_) v[piece][j] = v[piece][j] * factor * weight_[piece][j];
    }
    float scale = 0, inverse = 0;
    if constexpr (input != LinearInput::kBf16) {
      scale = source_.static_scale;
      if (!(scale > 0)) {
        if (!activated_) {
#pragma unroll
          for (int piece = 0; piece < kPieces; ++piece) magnitude = largest(v[piece], magnitude);
          // Of numbers that are not negative the order of bits is theirs, and NaNs are above them.
          magnitude = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(magnitude)));
        }
        scale = scale_of_magnitude(magnitude, kCodeType<input>);
      }
      inverse = inverse_of_scale(scale);
      if (scale < FLT_MIN) scale = 0.0f;
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      if (column(piece) < multiplied_from_ || column(piece) >= multiplied_to_) continue;
      if constexpr (input == LinearInput::kBf16)
        store_bf16(v[piece], static_cast<__nv_bfloat16*>(out) + column(piece));
      else
        store_codes(kCodeType<input>, v[piece], inverse, static_cast<int8_t*>(out) + column(piece));
    }
    return scale;
  }

 private:
  static constexpr int kPieces = kMostWarpRow / 256;
  __device__ __forceinline__ int column(int piece) const {
    return from_ + 8 * (32 * piece + static_cast<int>(threadIdx.x % 32));
  }

  const RowSource& source_;
  int k_;
  bool norm_, activated_;
  int from_, to_;  // the columns that it reads
  int multiplied_from_, multiplied_to_;
  float reciprocal_ = 0;  // of k
  float weight_[kPieces][8];
};

// Asks for what making a row needs and no kernel writes, before those are waited for.
__device__ __forceinline__ void prepare_rows(const RowSource& source, int k) {
#if __CUDA_ARCH__ >= 900
  if (source.kind == RowSource::Kind::kRmsNorm)
    for (int i = 32 * threadIdx.x; i < k; i += 32 * blockDim.x)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(source.weight + i));
#endif
}

// Row `row` of the source as codes q [k] and its scale; by a whole block.
template <CodeType type>
__device__ __forceinline__ void make_row(const RowSource& source, int64_t row, int k, int8_t* q,
                                         RowScratch& scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int all = threads_of_row(k, 8);  // threads of the kernel that makes rows alone
  const auto* floats = static_cast<const float*>(source.x) + row * source.x_stride;
  const auto* halves = static_cast<const __nv_bfloat16*>(source.x) + row * source.x_stride;
  const bool norm = source.kind == RowSource::Kind::kRmsNorm;
  if (source.kind == RowSource::Kind::kActivated) {
    // Its largest magnitude is known: once over the row.
    const float scale = source.static_scale > 0
                            ? source.static_scale
                            : scale_of_magnitude(__uint_as_float(source.magnitude[row]), type);
    const float inverse = inverse_of_scale(scale);
    if (threadIdx.x == 0) scratch.scale[row] = scale < FLT_MIN ? 0.0f : scale;
#pragma unroll 4
    for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
      float v[8];
      load(v, floats, i, k);
      store_codes(type, v, inverse, q + i);
    }
    __syncthreads();
    return;
  }
  // Rows that are read once: each thread keeps its pieces, and a piece is all that a thread of that
  // kernel adds up.
  const bool keeps = k <= 8 * all && k <= 8 * kKeptPieces * static_cast<int>(blockDim.x);
  float kept[kKeptPieces][8], factor = 1;
  if (keeps) {
#pragma unroll
    for (int piece = 0; piece < kKeptPieces; ++piece) {
      const int i = 8 * (piece * blockDim.x + threadIdx.x);
#pragma unroll
      for (int j = 0; j < 8; ++j) kept[piece][j] = 0;
      if (i >= k) continue;
      if (norm)
        load(kept[piece], floats, i, k);
      else
        load(kept[piece], halves, i, k);
    }
  }
  if (norm) {
    if (keeps) {
#pragma unroll
      for (int piece = 0; piece < kKeptPieces; ++piece) {
        const int w = piece * warps + warp;
        if (w >= all / 32) continue;
        float squares = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(kept[piece][j], kept[piece][j], squares);
        squares = warp_reduce(squares, Add{});
        if (lane == 0) scratch.reduce[0][w] = squares;
      }
      for (int w = kKeptPieces * warps + warp; w < all / 32; w += warps)
        if (lane == 0) scratch.reduce[0][w] = 0;
    } else {
      for (int w = warp; w < all / 32; w += warps) {
        float squares = 0, v[8];
        for (int i = 8 * (32 * w + lane); i < k; i += 8 * all) {
          load(v, floats, i, k);
#pragma unroll
          for (int j = 0; j < 8; ++j) squares = fmaf(v[j], v[j], squares);
        }
        squares = warp_reduce(squares, Add{});
        if (lane == 0) scratch.reduce[0][w] = squares;
      }
    }
    __syncthreads();
    const float sum = warp_reduce(lane < all / 32 ? scratch.reduce[0][lane] : 0.0f, Add{});
    factor = 1.0f / sqrtf(sum / static_cast<float>(k) + source.eps);
  }
  const auto finish = [&](int i, float(&v)[8]) {
    if (!norm) return;
    float weight[8];
    load(weight, source.weight, i, k);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = v[j] * factor * weight[j];
  };
  if (keeps) {
#pragma unroll
    for (int piece = 0; piece < kKeptPieces; ++piece) {
      const int i = 8 * (piece * blockDim.x + threadIdx.x);
      if (i < k) finish(i, kept[piece]);
    }
  }
  const auto values = [&](int i, float(&v)[8]) {
    if (norm)
      load(v, floats, i, k);
    else
      load(v, halves, i, k);
    finish(i, v);
  };
  float scale = source.static_scale, v[8];
  if (!(scale > 0)) {
    float magnitude = 0;
    if (keeps) {
#pragma unroll
      for (int piece = 0; piece < kKeptPieces; ++piece) magnitude = largest(kept[piece], magnitude);
    } else {
      for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
        values(i, v);
        magnitude = largest(v, magnitude);
      }
    }
    scale = scale_of_magnitude(block_reduce(magnitude, scratch.reduce[1], MaxNan{}), type);
  }
  const float inverse = inverse_of_scale(scale);
  if (threadIdx.x == 0) scratch.scale[row] = scale < FLT_MIN ? 0.0f : scale;
  if (keeps) {
#pragma unroll
    for (int piece = 0; piece < kKeptPieces; ++piece) {
      const int i = 8 * (piece * blockDim.x + threadIdx.x);
      if (i < k) store_codes(type, kept[piece], inverse, q + i);
    }
  } else {
    for (int i = 8 * threadIdx.x; i < k; i += 8 * blockDim.x) {
      values(i, v);
      store_codes(type, v, inverse, q + i);
    }
  }
  __syncthreads();
}

}  // namespace whit::cuda
