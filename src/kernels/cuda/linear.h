// Linears of the CUDA backend: y[M,N] = x[M,K] · wᵀ (+ bias) (+ residual), weights in low
// precision.
//
// This header names no type of CUDA's: whatever packs weights or lists formats compiles without the
// toolkit. `pack` runs on the CPU; its bytes are uploaded as they are, and every kernel of a format
// reads the same bytes (linear_layout.h).
//
// Numerics, the same for every M, so that a row's result does not depend on its batch:
//   kW4A8    per group of K the integer Σ (code − zero)·x is exact; acc = fma(scale, integer, acc)
//            over the groups of a chunk in ascending order, chunks of K (`k_chunks`, from N and K
//            alone) added in ascending order; y = acc · x_scale
//   kW8A8    the integer over all of K is exact; y = (integer · weight scale) · x_scale
//   kW4A8TwoLevel    weights of two-level scales (quant/weight.h) are integers of 8 bits times
//   their
//            row's step: as kW8A8
//   kW4A16, kW8A16   products and sums of a group in the tensor cores, f32; then as kW4A8
//   kW4AFp8  (code − zero) is exact in e4m3; products and sums of a group in the tensor cores, f32;
//            then as kW4A8, and y = acc · x_scale. Which tensor cores, and so the bits, depends on
//            the device and the weight's shape alone.
//   kBf16, kFp8      cuBLASLt, f32 sums in an order that may depend on M
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/thread_pool.h"
#include "quant/weight.h"

struct CUstream_st;

namespace whit::cuda {

enum class LinearFormat : uint8_t {
  kBf16,
  kW4A16,
  kW4A8,
  kW8A16,
  kW8A8,
  kFp8,
  kW4A8TwoLevel,
  kW4AFp8
};

// What x holds: bf16, int8 with one scale a row, or e4m3 with one scale a row.
enum class LinearInput : uint8_t { kBf16, kInt8, kE4m3 };

std::string_view name(LinearFormat format);  // "bf16", "w4a16", "w4a8", …
LinearInput input_of(LinearFormat format);

// One or several weights with the same K, stacked along N.
struct LinearWeight {
  LinearFormat format = LinearFormat::kBf16;
  int64_t n = 0, k = 0;
  int64_t group_size = 0;      // 4 bits: 32, 64 or 128, two-level 128
  bool zero_points = false;    // 4 bits: whether some zero point differs from 8
  const void* data = nullptr;  // on the device, 256-byte aligned
};

// Bytes of the packed weight. Throws kUnsupported for a group size that has no kernel.
int64_t packed_bytes(LinearFormat format, int64_t n, int64_t k, int64_t group_size);

// Packs the parts, in order along N, into out, packed_bytes of it, with all threads of the pool;
// returns the weight with data null. Parts are of one K and one of
//   kW4A16, kW4A8, kW4AFp8   kInt4Group of one group size
//   kW4A8TwoLevel   kInt4Group whose scales are two-level ones
//   kW8A16, kW8A8   kInt8Channel
//   kFp8            kFp8Channel
//   kBf16           kF32, kF16 or kBF16; rounded to nearest
// Throws kInvalidArgument for others, kInvalidData for NaNs in kFp8Channel.
LinearWeight pack_linear(LinearFormat format, std::span<const WeightView> parts, std::byte* out,
                         ThreadPool& pool);

enum class OutputType : uint8_t { kBf16, kF32 };

// What few rows of activations are made of, by the product itself (LinearRunner::makes_rows): as
// RmsNormArgs and QuantizeArgs of small_ops.h, to the same bits. Rows are 16-byte aligned.
struct RowSource {
  enum class Kind : uint8_t { kNone, kRmsNorm, kQuantize, kActivated } kind = Kind::kNone;
  const void* x = nullptr;  // bf16 of kQuantize, else f32
  int64_t x_stride = 0;
  const float* weight = nullptr;        // of a norm
  const uint32_t* magnitude = nullptr;  // of kActivated: ActivatedOutput's
  float eps = 0, static_scale = 0;
};
inline constexpr int64_t kMostMadeRows = 2;
// Values of rows that each warp makes for itself.
inline constexpr int64_t kMostWarpRow = 1024;

// Instead of y where LinearRunner::activates(): of gates g and as many ups u that follow them, both
// rounded to bf16, silu(g) · u in f32, and its rows' largest magnitudes: what quantizes them
// (RowSource::Kind::kActivated). Or in bf16 and no magnitudes, where those are null.
struct ActivatedOutput {
  void* y = nullptr;  // [M, N / 2]
  int64_t stride = 0;
  // The bits of max |y| of each row. Zero before; the ones after are made zero, for the next such
  // product: another one's.
  uint32_t *magnitude = nullptr, *next_magnitude = nullptr;
};

// Device pointers; strides in elements.
struct LinearArgs {
  LinearWeight weight;
  int64_t m = 0;
  // [M, K] in input_of(format). Rows are 16-byte aligned and x_stride is a multiple of 16, also
  // where K is not (what lies in between is not used, but must be readable; of kFp8 it must be
  // finite numbers).
  const void* x = nullptr;
  int64_t x_stride = 0;
  const float* x_scale = nullptr;  // [M]; int8 and e4m3
  RowSource source;                // instead of x and x_scale, where makes_rows()
  const float* bias = nullptr;     // [N] or null
  const void* residual = nullptr;  // [M, N] of y's type, or null; may alias y
  int64_t residual_stride = 0;
  ActivatedOutput activated;
  void* y = nullptr;  // [M, N]
  int64_t y_stride = 0;
  OutputType y_type = OutputType::kBf16;
};

// What the kernels know of one device: the number of its SMs, its compute capability, cuBLASLt and
// workspace. Made once, for the device that is current then; runs on one stream at a time.
class LinearRunner {
 public:
  // Throws kUnsupported below SM 8.0.
  LinearRunner();
  ~LinearRunner();
  LinearRunner(const LinearRunner&) = delete;
  LinearRunner& operator=(const LinearRunner&) = delete;

  // Throws kUnsupported, naming what is needed, where the device has no kernels for the format.
  void require(LinearFormat format) const;

  // Whether a product of m rows takes a source of this kind.
  bool makes_rows(const LinearWeight& weight, int64_t m, RowSource::Kind kind) const;

  // Whether a product of gates and ups that makes its rows takes ActivatedOutput, in bf16 too.
  bool activates(const LinearWeight& weight, int64_t m) const;

  // Enqueues the product on the stream; may be captured into a graph. Reads x, bias and residual
  // only after the kernels before it on the stream have ended, weights possibly sooner
  // (programmatic dependent launch): weights must be uploaded and synchronized before.
  // Throws kInvalidArgument for arguments that break the rules above, kUnsupported where the device
  // or an absent cuBLASLt cannot, kResource when the device refuses.
  void run(const LinearArgs& args, CUstream_st* stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace whit::cuda
