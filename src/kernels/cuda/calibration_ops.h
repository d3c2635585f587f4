// What calibration and the searches of quantization compute on the GPU beside dense products: the
// small operations of an f32 forward pass, sums over the inputs of linears, and roundings of
// weights. Argument structs and the table of functions.
//
// All pointers are device pointers and all values f32, rows are contiguous where no stride is
// given; strides count elements. Roundings give the bits of quant/weight.h and ops/ops.h; sums run
// in an order that shapes alone decide. Nothing allocates or waits. This header names no type of
// CUDA's.
#pragma once

#include <cstdint>

#include "kernels/cuda/code_type.h"

struct CUstream_st;

namespace whit::cuda {

// y = x · rsqrt(mean(x²) + eps) · weight, by row of x [T, D].
struct NormF32Args {
  const float* x;
  const float* weight;  // [D]
  float eps;
  int64_t t, d;
  float* y;
};

// Rotates pairs (i, i + Dh/2) of every head of x [T, heads · Dh] in place; row t is at position t
// mod length.
struct RopeF32Args {
  float* x;
  int64_t t, heads, head_dim, length;
  const float* cos;  // [length, Dh / 2]
  const float* sin;
};

// out = softmax(q·kᵀ · scale) · v, causal within sequences of `length` rows, grouped-query; keys in
// ascending order in blocks with a running maximum.
struct AttentionF32Args {
  const float* q;  // [sequences · length, heads · Dh]
  const float* k;  // [sequences · length, kv_heads · Dh]
  const float* v;
  int64_t sequences, length, heads, kv_heads, head_dim;
  float scale;
  int64_t sliding_window;  // 0: none
  float* out;
};
inline constexpr int64_t kMaxHeadDimF32 = 256;

// By column of x [T, K]: sum += Σ|x|, largest = max(largest, |x|).
struct MagnitudesArgs {
  const float* x;
  int64_t t, k;
  float* partials;  // magnitudes_partials(t) · 2 · K
  float* sum;       // [K] or null
  float* largest;   // [K]
};
inline constexpr int64_t kMagnitudeRows = 64;  // that one thread walks
inline int64_t magnitudes_partials(int64_t t) { return (t + kMagnitudeRows - 1) / kMagnitudeRows; }

// W·s rounded to a weight format and back.
struct RoundTripArgs {
  const float* w;  // [N, K]
  int64_t n, k;
  const float* s;      // [K] or null for ones
  const float* clip;   // [N, G] bounds of |w|, or null; int4 alone
  int64_t group_size;  // 0: codes of 8 bits with one scale a row
  bool symmetric, two_level;
  CodeType codes;  // of 8 bits
  float* out;      // [N, K]
};

// out = out / s − w; s null: out − w.
struct SubtractArgs {
  float* out;  // [N, K]
  const float* w;
  const float* s;  // [K] or null
  int64_t n, k;
};

// delta = Q8(x/s) − x/s of rows x [T, K] in codes with a scale for each row, or with the given one.
struct RoundActivationsArgs {
  const float* x;
  const float* s;  // [K] or null
  int64_t t, k;
  float static_scale;  // > 0: this one
  CodeType codes;
  float* delta;
};

// partials[b] = (+)= Σ a·b·weights over a share of the rows; their sum is the whole.
struct SumProductsArgs {
  const float* a;  // [T, K]
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  const float* weights;  // [K] or null for ones
  int64_t t, k;
  double* partials;  // [kSumPartials]
  bool accumulate;
};
inline constexpr int64_t kSumPartials = 1024;

// One range of a search: the groups of columns [first, first + columns) of every row, shrunk to a
// share of their largest magnitude and rounded to int4. delta [N, columns] = Q(w) − w.
struct ClipArgs {
  const float* w;  // [N, K], at column `first`
  int64_t n, k, columns, group_size;
  bool symmetric;
  float share;
  float* delta;
};
// … and what it costs: product [N, columns] is delta times the Gram matrix of its group. A group
// whose cost fell keeps the range. Groups are `at` … of `groups` in a row.
struct ClipKeepArgs {
  const float* w;
  const float* delta;
  const float* product;
  int64_t n, k, columns, group_size, at, groups;
  float share;
  bool first_range;
  double* best;    // [N, groups]
  float* bounds;   // [N, groups]
  float* largest;  // [N, groups]: of the whole range
};

// A search for two-level scales: of each row the step, of some shares of the least one that holds
// all groups of plain rounding, and for it the groups' multiples.
struct TwoLevelSearch {
  const float* w;  // [N, K]
  int64_t n, k, group_size, groups;
  bool symmetric;
  float *whole, *zero;  // [N, groups] of plain rounding
  float* least_step;    // [N]
  // Of the share that is tried: the step, and the best multiple times it with what that costs.
  float* step;   // [N]
  float* scale;  // [N, groups]
  double* best;  // [N, groups]
  // Of the best share.
  double* least_cost;  // [N]
  float* kept_step;    // [N]
  float* kept_scale;   // [N, groups]
};
// One multiple of every group, `below` its largest, in columns [first, first + columns).
struct TwoLevelTryArgs {
  TwoLevelSearch search;
  int64_t first, columns;
  int below;
  float least_share;     // of the exact multiple: none below it is tried
  float* delta;          // [N, columns] = Q(w) − w; zero where a group has no such multiple
  const float* product;  // as ClipKeepArgs'
};

struct CalibrationOps {
  void (*norm)(const NormF32Args&, CUstream_st*);
  void (*rope)(const RopeF32Args&, CUstream_st*);
  void (*attention)(const AttentionF32Args&, CUstream_st*);
  // y = silu(gate) · up
  void (*silu_mul)(const float* gate, const float* up, float* y, int64_t count, CUstream_st*);
  void (*add)(const float* x, const float* r, float* y, int64_t count, CUstream_st*);
  // y [T, N] += bias [N]
  void (*add_bias)(float* y, const float* bias, int64_t t, int64_t n, CUstream_st*);
  void (*magnitudes)(const MagnitudesArgs&, CUstream_st*);
  void (*copy)(const float* from, float* to, int64_t count, CUstream_st*);
  void (*round_trip)(const RoundTripArgs&, CUstream_st*);
  void (*subtract)(const SubtractArgs&, CUstream_st*);
  void (*round_activations)(const RoundActivationsArgs&, CUstream_st*);
  // noise [K] = Σ_t delta² / T
  void (*mean_squares)(const float* delta, int64_t t, int64_t k, float* noise, CUstream_st*);
  // x [T, K] ·= rows[t] · columns[k]; rows null: ones
  void (*scale)(float* x, const float* rows, const float* columns, int64_t t, int64_t k,
                CUstream_st*);
  void (*sum_products)(const SumProductsArgs&, CUstream_st*);
  void (*clip)(const ClipArgs&, CUstream_st*);
  void (*clip_keep)(const ClipKeepArgs&, CUstream_st*);
  // begin; for each share: steps, for all columns and multiples try and keep, end.
  void (*two_level_begin)(const TwoLevelSearch&, CUstream_st*);
  void (*two_level_steps)(const TwoLevelSearch&, float share, CUstream_st*);
  void (*two_level_try)(const TwoLevelTryArgs&, CUstream_st*);
  void (*two_level_keep)(const TwoLevelTryArgs&, CUstream_st*);
  void (*two_level_end)(const TwoLevelSearch&, bool first_share, CUstream_st*);
};
const CalibrationOps& calibration_ops();

}  // namespace whit::cuda
