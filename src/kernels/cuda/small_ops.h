// Everything on the GPU that is not a linear: argument structs and the table of functions.
//
// All pointers are device pointers, strides count elements, T is the number of rows of the step.
// The residual stream is f32; what linears read is bf16, or int8 or e4m3 with one scale a row
// (ops/ops.h and ops/reference/quantize.h have the rules). A row's result depends on that row
// alone, whatever T is. Nothing allocates or waits; every kernel may be captured into a graph and
// is launched with programmatic dependent launch where the device has it: it begins while the one
// before ends, and waits for it before it touches memory.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/cuda/code_type.h"
#include "ops/sampling.h"

struct CUstream_st;

namespace whit::cuda {

using bf16 = uint16_t;  // bit pattern of a bfloat16 where no CUDA header is included

// What a norm, an activation or attention writes for the linears after it: either or both.
struct RowsOut {
  void* y = nullptr;  // bf16 [T, y_stride], or null
  int64_t y_stride = 0;
  void* q = nullptr;  // codes [T, q_stride], or null
  CodeType codes = CodeType::kInt8;
  int64_t q_stride = 0;
  float* scale = nullptr;  // [T]
  float static_scale = 0;  // > 0: per-tensor static quantization with this scale
};

// A table in one of the canonical layouts of quant/weight.h, whose enumerators these are.
enum class TableFormat : uint8_t { kF32, kF16, kBF16, kInt4Group, kInt8Channel, kFp8Channel };
struct Table {
  TableFormat format = TableFormat::kF32;
  int64_t k = 0, group_size = 0;
  const void* data = nullptr;
  const void* scales = nullptr;
  const uint8_t* zeros = nullptr;
};

struct EmbeddingArgs {
  Table table;
  const int32_t* ids;
  int64_t t;
  float* out;  // [T, K]
};

// out = x · rsqrt(mean(x²) + eps) · weight, of rows[i] where rows are given, else of row i.
struct RmsNormArgs {
  const float* x;       // [.., D]
  const int32_t* rows;  // [T] or null
  const float* weight;  // [D]
  float eps;
  int64_t t, d;
  RowsOut out;
};

// out = silu(gate) · up, computed in f32.
struct SiluMulArgs {
  const void* gate;  // bf16
  int64_t gate_stride;
  const void* up;  // bf16
  int64_t up_stride;
  int64_t t, f;
  RowsOut out;  // q too
};

// q = codes of x.
struct QuantizeArgs {
  const void* x;  // bf16
  int64_t x_stride;
  int64_t t, k;
  RowsOut out;  // q alone
};

// Keys and values of one layer on the device, in pages of P tokens, P a multiple of 16:
//   k, v     [pages, Hkv, P, Dh] bf16, int8 or e4m3
//   scales   [pages, Hkv, P] f32, of the 8-bit ones: one for each token and head, absmax / 127 or
//            absmax / 448
enum class KvStorage : uint8_t { kBf16, kInt8, kFp8 };
inline std::string_view name(KvStorage storage) {
  return storage == KvStorage::kBf16 ? "bf16" : storage == KvStorage::kInt8 ? "int8" : "fp8";
}
struct DeviceKv {
  KvStorage storage = KvStorage::kBf16;
  void* k = nullptr;
  void* v = nullptr;
  float* k_scales = nullptr;
  float* v_scales = nullptr;
  int64_t page_tokens = 0, kv_heads = 0, head_dim = 0;
};

// The step's metadata on the device (BatchView's fields). A row whose slot is negative is padding:
// nothing is written for it.
struct DeviceBatch {
  int64_t t = 0, b = 0;
  const int32_t* positions = nullptr;
  const int32_t* query_start = nullptr;
  const int32_t* context_len = nullptr;
  const int32_t* block_table = nullptr;
  int64_t max_blocks = 0;
  const int32_t* slots = nullptr;
};

// Rotates q in place and k on its way into the cache; v goes there as it is.
struct RopeKvArgs {
  void* q;  // bf16 [T, H · Dh]
  int64_t q_stride;
  const void* k;  // bf16 [T, Hkv · Dh]
  int64_t k_stride;
  const void* v;
  int64_t v_stride;
  int64_t heads;
  const float* cos;  // [positions, Dh / 2]
  const float* sin;
  DeviceBatch batch;
  DeviceKv cache;
};

// out = softmax(q·kᵀ · scale) · v, causal, grouped-query. Keys are taken in chunks of kChunk tokens
// that begin at multiples of kChunk; inside one in two blocks with a running maximum, in ascending
// order; chunks are merged in ascending order. Decode and prefill differ in who does what, not in
// any sum, so a token's result depends on its own context alone.
struct AttentionArgs {
  const void* q;  // bf16 [T, H · Dh]
  int64_t q_stride;
  int64_t heads;
  float scale;
  int64_t sliding_window;  // 0: none
  DeviceBatch batch;
  DeviceKv cache;
  void* out;  // bf16 [T, H · Dh]
  int64_t out_stride;
  // Sequences with at most kDecodeRows / (H / Hkv) rows in this step: their chunks are computed in
  // parallel.
  int64_t max_chunks;  // of the longest context among them, as attention_chunks counts; 0: none
  float* partials;     // attention_partial_bytes
  int32_t* counters;   // [B · Hkv], zero before and after
  // The others: tiles of kPrefillRows rows.
  const int32_t*
      tiles;  // [tile_count, 2] sequence and first of its packed rows (token · H/Hkv + head)
  int64_t tile_count;  // 0: none
  // Of a cache of 8-bit codes: room in which the tiles' sequences are widened to bf16 first, on
  // Hopper (attention_widened_bytes), or null, which is slower.
  void* widened = nullptr;
  const int32_t* widened_first = nullptr;  // [B] each one's first chunk in it; negative: no tiles
  int64_t widened_chunks = 0, widened_most = 0;  // chunks of all; of the longest
};
inline constexpr int64_t kChunk = 128;
inline constexpr int64_t kDecodeRows = 16;
inline constexpr int64_t kPrefillRows = 128;
inline constexpr int64_t kMaxHeadDim = 128;
// Chunks that hold what the last `tokens` of `context` see.
inline int64_t attention_chunks(int64_t context, int64_t tokens, int64_t window) {
  const int64_t first = context - tokens - window + 1;
  return (context + kChunk - 1) / kChunk - (window == 0 || first < 0 ? 0 : first / kChunk);
}
inline int64_t attention_partial_bytes(int64_t sequences, int64_t kv_heads, int64_t chunks,
                                       int64_t head_dim) {
  const int64_t padded = head_dim <= 32 ? 32 : head_dim <= 64 ? 64 : 128;
  return sequences * kv_heads * chunks * kDecodeRows * (padded + 2) * 4;
}

// Keys [chunks, Hkv, kChunk, Dh] bf16, values alike, and the scales [chunks, Hkv, 2, kChunk] f32 of
// keys and values.
inline int64_t attention_widened_bytes(int64_t chunks, int64_t kv_heads, int64_t head_dim) {
  return chunks * kv_heads * kChunk * (2 * 2 * head_dim + 2 * 4);
}

// keys[i] = the largest of logits[i, 0…V−1] and its place; argmax_token reads the place, the lowest
// of equals. A NaN counts as the smallest.
struct ArgmaxArgs {
  const float* logits;  // [rows, V]
  int64_t rows, vocab;
  uint64_t* best;     // [rows], of blocks that have come: zero before, and after
  uint32_t* arrived;  // [rows], those blocks: zero before, and after
  uint64_t* keys;     // [rows]; may be page-locked memory of the host
};
inline int32_t argmax_token(uint64_t key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

// Whether the largest is above −∞. (A float that compares like its bits has 0x007fffff for −∞.)
inline bool argmax_finite(uint64_t key) { return key >> 32 > 0x007fffffu; }

// How a token is drawn from a row of logits; runtime/sampler.h has the rule.
struct SampleDraw {
  uint64_t random = 0;
  float inverse_temperature = 0;  // 0: takes the likeliest
  float top_p = 1, min_p = 0;
  int64_t top_k = 0;  // ≤ 0: off
  int32_t first_change = 0, change_count = 0;
  int32_t allowed = -1;  // bit set; −1: every token
};
// tokens[i] is drawn from logits[i, 0…V−1] after its changes, which stay in the logits. kNoToken:
// every logit is NaN or −∞. kUndecidedToken: +∞ among them, or more equals than the kernel sorts;
// the logits are as they were, for the host to draw from.
struct SampleArgs {
  float* logits;  // [rows, V], V below 2²⁰
  int64_t rows, vocab;
  const SampleDraw* draws;     // [rows]
  const LogitChange* changes;  // a row's name each token once
  float* unchanged;            // as many, scratch
  const uint32_t* allowed;     // [.., 2 · ⌈V / 64⌉] a bit a token, the lowest first
  int32_t* tokens;             // [rows]
};
inline constexpr int32_t kNoToken = -1, kUndecidedToken = -2;
inline constexpr int64_t kMaxSampledVocab = int64_t{1} << 20;

struct SmallOps {
  void (*embedding)(const EmbeddingArgs&, CUstream_st*);
  void (*rms_norm)(const RmsNormArgs&, CUstream_st*);
  void (*silu_mul)(const SiluMulArgs&, CUstream_st*);
  void (*quantize)(const QuantizeArgs&, CUstream_st*);
  void (*rope_kv_write)(const RopeKvArgs&, CUstream_st*);
  void (*attention)(const AttentionArgs&, CUstream_st*);
  void (*argmax)(const ArgmaxArgs&, CUstream_st*);
  void (*sample)(const SampleArgs&, CUstream_st*);
};
const SmallOps& small_ops();

}  // namespace whit::cuda
