// The CPU backend's table of kernels: one row per linear kernel, one row of small operations per
// ISA.
//
// A row names the ISA its code needs; `linear_kernel` picks the best one that this CPU (or a
// forced, lower level) has. Kernels of one (format, activation) pair give the same sums in the same
// order whatever M is; across ISAs results differ within the tolerance that
// kernels/cpu/linear_test.cc computes.
#pragma once

#include <span>
#include <string_view>

#include "ops/ops.h"

namespace whit::cpu {

// kAvx512: F, BW, DQ, VL, VNNI and BF16; kAmx: these and int8 tiles.
enum class Isa : uint8_t { kPortable, kAvx2, kAvx512, kAmx };

std::string_view name(Isa isa);        // "portable", "avx2", "avx512", "amx"
Isa parse_isa(std::string_view name);  // throws kInvalidArgument with the possible names
Isa detected_isa();                    // the best level that this CPU and OS support

// kFp8: e4m3 with a scale a row. No kernel multiplies e4m3 on a CPU: whoever lowers a product
// rounds its rows (ops/reference/quantize.h) and takes a kernel of kFloat.
enum class Activation : uint8_t { kFloat, kInt8, kFp8 };

struct LinearKernel;

// One or several weights with the same K, format and group size, stacked along N and packed for one
// kernel.
struct PackedWeight {
  const LinearKernel* kernel = nullptr;
  int64_t n = 0, k = 0, group_size = 0;
  int64_t payload_bytes =
      0;        // bytes that a product with few rows must read: what the roofline counts
  Buffer data;  // layout is the kernel's own
};

// y[M, N] = x[M, K] · wᵀ (+ bias) (+ residual)
struct LinearArgs {
  const PackedWeight* weight;
  int64_t m;
  const float* x;  // Activation::kFloat: [M, K]
  int64_t x_stride;
  Int8Rows
      q;  // Activation::kInt8: q.group_size must equal the weight's group size (K for int8 weights)
  const float* bias;      // [N] or null
  const float* residual;  // [M, N] or null; may alias y
  int64_t residual_stride;
  float* y;
  int64_t y_stride;
  std::byte* scratch;  // worker i uses the scratch_bytes at offset i · scratch_bytes(…)
};

struct LinearKernel {
  std::string_view name;  // its file's path: "avx2/linear_int4", …
  WeightFormat
      format;  // kF32, kF16 and kBF16 sources are packed by kernels of format kF32 (exact) or kBF16
  Activation activation;
  Isa isa;
  // Bytes of PackedWeight::data for a stack of n rows.
  int64_t (*packed_bytes)(int64_t n, int64_t k, int64_t group_size);
  // Packs this worker's share of the panels. `parts` are stacked in order; packed.data is
  // allocated.
  void (*pack)(std::span<const WeightView> parts, PackedWeight& packed, const Worker& worker);
  // Scratch of one worker for any m.
  int64_t (*scratch_bytes)(const PackedWeight& packed, int64_t m);
  void (*run)(const LinearArgs& args, const Worker& worker);
  // kFloat kernels that multiply integers: how far they round a row's activations at most, as a
  // share of the row's largest magnitude.
  float activation_error = 0;
  // Of kInt4Group weights of two-level scales alone.
  bool two_level = false;
};

// Of int4 weights: what their sums in int32 have room for.
inline constexpr int64_t kMostGroupColumns = 8192;

std::span<const LinearKernel> linear_kernels();  // all rows, best ISA first
// The best kernel for the pair at or below `isa`; never null for the pairs the schemes need:
// {kF32, kBF16, kInt4Group, kInt8Channel, kFp8Channel} × kFloat and {kInt4Group, kInt8Channel} ×
// kInt8. kFp8 has those of kFloat.
// Two-level scales have kernels of their own for kInt8; to others they are scales like any.
const LinearKernel& linear_kernel(WeightFormat format, Activation activation, Isa isa,
                                  bool two_level = false);

// Allocates, packs with all threads of the pool and returns.
PackedWeight pack_linear(const LinearKernel& kernel, std::span<const WeightView> parts,
                         ThreadPool& pool);

struct SmallOps {
  std::string_view name;
  Isa isa;
  void (*rms_norm)(const RmsNormArgs&, const Worker&);
  void (*quantize)(const QuantizeArgs&, const Worker&);
  void (*silu_mul)(const SiluMulArgs&, const Worker&);
  void (*add)(const AddArgs&, const Worker&);
  void (*rope)(const RopeArgs&, const Worker&);
  void (*kv_write)(const KvWriteArgs&, const Worker&);
  void (*kv_commit)(const KvWriteArgs&, const Worker&);
  int64_t (*attention_scratch_bytes)(const AttentionArgs&);  // of one worker
  void (*attention)(const AttentionArgs&, const Worker&);
  // Whether so many workers divide a sequence's context between them. Then, once all are done,
  // attention_merge puts their parts together.
  bool (*attention_in_parts)(const AttentionArgs&, int workers);
  void (*attention_merge)(const AttentionArgs&, const Worker&);
  void (*embedding)(const EmbeddingArgs&, const Worker&);
  // Index of the largest of x[0…n−1], the lowest index where equal.
  int64_t (*argmax)(const float* x, int64_t n);
  // log Σ e^x, computed as max + log Σ e^(x − max).
  float (*log_sum_exp)(const float* x, int64_t n);
  // p = softmax over x with the given log-sum-exp, Σ p·(x − lse − (y − lse_y)): KL(softmax(x) ‖
  // softmax(y)).
  double (*kl_divergence)(const float* x, float lse_x, const float* y, float lse_y, int64_t n);
};

std::span<const SmallOps> small_ops_table();
const SmallOps& small_ops(Isa isa);  // the best row at or below isa

}  // namespace whit::cpu
