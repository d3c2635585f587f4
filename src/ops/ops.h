// Argument structs of every operation the graph uses. Kernels receive these and a Worker; they
// never allocate.
//
// Dimensions: T tokens this step · B sequences · D hidden · F ffn · V vocab · H, Hkv, Dh query
// heads, key/value heads, head size · M, N, K of y[M,N] = x[M,K]·w[N,K]ᵀ · G quant groups · P page
// tokens.  Everything is row-major; a `stride` counts elements between rows. Activations are f32.
// All threads of the pool call the same kernel with the same arguments; a kernel does its worker's
// share and does not synchronise: the caller puts barriers between operations.
//
// The result of an operation for one row (token) does not depend on how many other rows there are,
// nor on the number of threads: each kernel's contract fixes the order of its floating-point sums
// (ops/reference states it).
#pragma once

#include <cstdint>

#include "base/thread_pool.h"
#include "ops/kv_layout.h"
#include "quant/weight.h"
#include "tensor/dtype.h"

namespace whit {

// Rows of activations quantized to int8, symmetric: x ≈ q · scale.
//   scale = absmax/127 per row, or the given static one;  q = clamp(rne(x · (1 / scale)), −127,
//   127), each step rounded to f32: every kernel gives the same codes (ops/reference/quantize.h has
//   the edge cases).
struct Int8Rows {
  int8_t* q = nullptr;  // [M, stride]; columns K…stride−1 are zero, stride a multiple of 64
  int64_t stride = 0;
  float* scale = nullptr;         // [M]
  int32_t* group_sums = nullptr;  // [M, G] sum of q over each group of `group_size` columns (the
                                  // last may be short), or null
  int64_t group_size = 0;         // of group_sums; K means one group. A multiple of 32, or K.
  float static_scale = 0;         // > 0: per-tensor static quantization with this scale
};

// y = x · rsqrt(mean(x²) + eps) · weight, per row.  At least one of y and q is given.
struct RmsNormArgs {
  const float* x;  // [M, D]
  int64_t x_stride;
  const float* weight;  // [D]
  float eps;
  int64_t m, d;
  float* y;  // [M, D] or null
  int64_t y_stride;
  Int8Rows q;  // q.q null: no int8 output
};

// q = int8(x).
struct QuantizeArgs {
  const float* x;  // [M, K]
  int64_t x_stride;
  int64_t m, k;
  Int8Rows q;
};

// y = silu(gate) · up, silu(x) = x / (1 + e^−x).  At least one of y and q is given.
struct SiluMulArgs {
  const float* gate;  // [M, F]
  int64_t gate_stride;
  const float* up;  // [M, F]
  int64_t up_stride;
  int64_t m, f;
  float* y;  // [M, F] or null; may alias gate
  int64_t y_stride;
  Int8Rows q;
};

// y = x + r.
struct AddArgs {
  const float* x;
  const float* r;
  float* y;  // may alias x or r
  int64_t count;
};

// Rotates pairs (i, i + rotary_dims/2) of each head's first rotary_dims values in place, HF's
// half-split convention:
//   (a, b) → (a·cos − b·sin, b·cos + a·sin), cos/sin taken at row positions[t].
struct RopeArgs {
  float* x;  // [T, heads · Dh]
  int64_t x_stride;
  int64_t t, heads, head_dim, rotary_dims;
  const int32_t* positions;  // [T]
  const float* cos;          // [max_positions, rotary_dims/2]
  const float* sin;
};

// Keys and values of one layer in pages of P tokens (P a multiple of 16, of 32 where there are
// codes). A contiguous cache is one page.
// Within a page, where the pages of other layers may lie between:
//   kF32         k  [Hkv, P/16, Dh, 16]   16 tokens side by side: a lane is a token, so that
//                                         scores need no horizontal sums
//                v  [Hkv, P, Dh]
//   the others   k, v  [Hkv, P/32] blocks of codes (ops/kv_layout.h)
//   tails        [tails, Hkv, 64, Dh] f16, the token at position p in row p mod 64; where
//                kv_has_tails
struct KvCacheView {
  KvType type = KvType::kF16;
  KeyLayout key_layout = KeyLayout::kToken;  // of integers
  void* k = nullptr;
  void* v = nullptr;
  uint16_t* k_tails = nullptr;
  uint16_t* v_tails = nullptr;
  // From the keys, and the values, of a page to those of the next.
  int64_t k_page_bytes = 0, v_page_bytes = 0;
  int64_t page_tokens = 0, kv_heads = 0, head_dim = 0;
};

// One step's ragged batch. Sequence b owns rows query_start[b] … query_start[b+1]−1; after the step
// its context has context_len[b] tokens, the last of which are those rows.
struct BatchView {
  int64_t t = 0, b = 0;
  const int32_t* positions = nullptr;    // [T]
  const int32_t* query_start = nullptr;  // [B + 1]
  const int32_t* context_len = nullptr;  // [B]
  const int32_t* block_table = nullptr;  // [B, max_blocks] page numbers
  int64_t max_blocks = 0;
  const int32_t* slots =
      nullptr;  // [T] page · P + offset where the token's key and value go, distinct
  const int32_t* tails = nullptr;  // [B] distinct; where the cache has tails
};

// Of a cache with tails, kv_write writes the blocks that this step completes; kv_commit, once
// attention is done, the step's last tokens into the tails.
struct KvWriteArgs {
  const float* k;  // [T, Hkv · Dh]
  int64_t k_stride;
  const float* v;
  int64_t v_stride;
  BatchView batch;
  KvCacheView cache;
};

// out = softmax(q·kᵀ · scale) · v, causal, grouped-query (query head h reads kv head h / (H /
// Hkv)). Keys are taken in ascending order in fixed blocks with a running maximum, so a query's
// result depends on its own context alone.
struct AttentionArgs {
  const float* q;  // [T, H · Dh]
  int64_t q_stride;
  int64_t heads;
  float scale;
  int64_t sliding_window;  // 0: none; w: a query at position p sees positions p−w+1 … p
  BatchView batch;
  KvCacheView cache;
  // This step's keys and values [T, Hkv · Dh]; read where the cache has tails.
  const float* k = nullptr;
  int64_t k_stride = 0;
  const float* v = nullptr;
  int64_t v_stride = 0;
  float* out = nullptr;  // [T, H · Dh]
  int64_t out_stride = 0;
  std::byte* scratch =
      nullptr;  // attention_scratch_bytes(args) per worker, worker i at offset i · that
};

// out[t] = table[ids[t]], rows dequantised to f32.
struct EmbeddingArgs {
  WeightView table;    // any format
  const int32_t* ids;  // [T], each in [0, V)
  int64_t t;
  float* out;  // [T, D]
  int64_t out_stride;
};

}  // namespace whit
