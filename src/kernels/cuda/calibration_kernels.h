// The functions of the table in calibration_ops.h, by source.
#pragma once

#include "kernels/cuda/calibration_ops.h"

namespace whit::cuda {

// calibration_forward.cu
void norm_f32(const NormF32Args&, CUstream_st*);
void rope_f32(const RopeF32Args&, CUstream_st*);
void silu_mul_f32(const float* gate, const float* up, float* y, int64_t count, CUstream_st*);
void add_f32(const float* x, const float* r, float* y, int64_t count, CUstream_st*);
void add_bias_f32(float* y, const float* bias, int64_t t, int64_t n, CUstream_st*);
// calibration_attention.cu
void attention_f32(const AttentionF32Args&, CUstream_st*);
// calibration_sums.cu
void magnitudes(const MagnitudesArgs&, CUstream_st*);
void copy_f32(const float* from, float* to, int64_t count, CUstream_st*);
void mean_squares(const float* delta, int64_t t, int64_t k, float* noise, CUstream_st*);
void scale_f32(float* x, const float* rows, const float* columns, int64_t t, int64_t k,
               CUstream_st*);
void sum_products(const SumProductsArgs&, CUstream_st*);
// calibration_rounding.cu
void round_trip(const RoundTripArgs&, CUstream_st*);
void subtract(const SubtractArgs&, CUstream_st*);
void round_activations(const RoundActivationsArgs&, CUstream_st*);
void clip(const ClipArgs&, CUstream_st*);
void clip_keep(const ClipKeepArgs&, CUstream_st*);
// calibration_two_level.cu
void two_level_begin(const TwoLevelSearch&, CUstream_st*);
void two_level_steps(const TwoLevelSearch&, float share, CUstream_st*);
void two_level_try(const TwoLevelTryArgs&, CUstream_st*);
void two_level_keep(const TwoLevelTryArgs&, CUstream_st*);
void two_level_end(const TwoLevelSearch&, bool first_share, CUstream_st*);

}  // namespace whit::cuda
