// AVX-512 VNNI linears of int8_channel weights and int8 activations:
//   y[m, n] = float(Σ_k code[n, k] · q[m, k]) · (scale[n] · x_scale[m]) (+ bias) (+ residual)
//
// vpdpbusd multiplies unsigned bytes by signed ones and sums four products into int32 without
// saturation. The unsigned side is q + 128; the sums start at −128 · Σ_k code[n, k], which is
// packed with the panel, and wrap around to the exact result. A line of a panel is used as it lies
// in memory: no unpacking for any M.
//
// Tiles of 8 × 32 outputs: 16 accumulators and 10 loads for 16 vpdpbusd a line. Bound: one or two
// vpdpbusd a clock (by CPU), 128 operations each.
#include <immintrin.h>

#include <cstring>

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/linear_rows.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt8Channel;
constexpr int kLanes = 16, kVectors = kPanelRows / kLanes;
constexpr int kTileRows = 8;
constexpr int64_t kBlockLines = 128;  // 512 columns: 16 KB, half of the smallest L1
constexpr int64_t kBlockBytes = 512 << 10;
constexpr int64_t kLeastBlockRows = 64, kMostBlockRows = 512;
constexpr int64_t kPrefetchBytes = 8192;

inline __m512i load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, __m512i value) { _mm512_storeu_si512(to, value); }

// acc += unsigned · signed bytes. As an intrinsic g++ 12 moves accumulators between registers and
// the stack.
inline void add_products(__m512i& acc, __m512i unsigned_bytes, __m512i signed_bytes) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
}

int64_t offset_row_bytes(int64_t k) { return (k + 63) / 64 * 64; }

// q + 128.
void offset_activations(const int8_t* q, int64_t k, uint8_t* to) {
  for (int64_t i = 0; i < k; i += 64)
    store(to + i, _mm512_xor_si512(load(q + i), _mm512_set1_epi8(static_cast<char>(0x80))));
}

// sums [MR][32] += x · lines.
template <int MR>
void multiply_tile(const std::byte* lines, int64_t count, const uint8_t* x, int64_t x_stride,
                   int32_t* sums) {
  __m512i acc[MR][kVectors];
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    acc[i / kVectors][i % kVectors] = load(sums + kLanes * i);
  });
  for (int64_t line = 0; line < count; ++line, lines += kLineBytes, x += 4) {
    _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes, _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(lines) + kPrefetchBytes + 64, _MM_HINT_T0);
    const __m512i w0 = load(lines), w1 = load(lines + 64);
    repeat<MR>([&](auto m) __attribute__((always_inline)) {
      int32_t word;
      std::memcpy(&word, x + m * x_stride, 4);
      const __m512i value = _mm512_set1_epi32(word);
      add_products(acc[m][0], value, w0);
      add_products(acc[m][1], value, w1);
    });
  }
  repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
    store(sums + kLanes * i, acc[i / kVectors][i % kVectors]);
  });
}

using TileFunction = void (*)(const std::byte*, int64_t, const uint8_t*, int64_t, int32_t*);
constexpr TileFunction kTileFunctions[kTileRows] = {
    multiply_tile<1>, multiply_tile<2>, multiply_tile<3>, multiply_tile<4>,
    multiply_tile<5>, multiply_tile<6>, multiply_tile<7>, multiply_tile<8>};

void multiply_panel(const std::byte* panel, int64_t count, const uint8_t* x, int64_t x_stride,
                    int64_t rows, int32_t* sums) {
  for (int v = 0; v < kVectors; ++v) {
    const __m512i code_sums = load(panel + 4 * kPanelRows + 4 * kLanes * v);
    const __m512i start = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(code_sums, 7));
    for (int64_t m = 0; m < rows; ++m) store(sums + m * kPanelRows + kLanes * v, start);
  }
  // One tile takes all of K at once: there is no second one to keep a block in L1 for.
  const int64_t block = rows <= kTileRows ? count : kBlockLines;
  const std::byte* lines = panel + kChannelHeaderBytes;
  for (int64_t line = 0; line < count; line += block) {
    const int64_t some = count - line < block ? count - line : block;
    for (int64_t m = 0; m < rows; m += kTileRows) {
      const int64_t tile_rows = rows - m < kTileRows ? rows - m : kTileRows;
      kTileFunctions[tile_rows - 1](lines + line * kLineBytes, some, x + m * x_stride + 4 * line,
                                    x_stride, sums + m * kPanelRows);
    }
  }
}

// sums → f32 in place, times the scales.
void scale_sums(const LinearArgs& args, const std::byte* panel, int64_t row_begin, int64_t rows,
                int32_t* sums) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  for (int64_t m = 0; m < rows; ++m, sums += kPanelRows) {
    const __m512 x_scale = _mm512_set1_ps(activation_scale(args.q, row_begin + m));
    for (int v = 0; v < kVectors; ++v) {
      const __m512 sum = _mm512_cvtepi32_ps(load(sums + kLanes * v));
      const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales + kLanes * v), x_scale);
      store(sums + kLanes * v, _mm512_castps_si512(_mm512_mul_ps(sum, scale)));
    }
  }
}

// Rows of activations per block: they should stay in L2 while all panels pass by.
int64_t block_rows(int64_t k, int64_t m) {
  int64_t rows = kBlockBytes / k;
  rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
  rows -= rows % kTileRows;
  return rows < m ? rows : m;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return block_rows(weight.k, m) * (4 * kPanelRows + offset_row_bytes(weight.k));
}

void run(const LinearArgs& args, const Worker& worker) {
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kTileRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t stride = panel_bytes(kFormat, weight.k, 0), lines = lines_of(kFormat, weight.k);
  const int64_t most_rows = block_rows(weight.k, args.m), x_stride = offset_row_bytes(weight.k);
  auto* sums =
      reinterpret_cast<int32_t*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
  auto* x = reinterpret_cast<uint8_t*>(sums + most_rows * kPanelRows);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = share.row_end - begin < most_rows ? share.row_end - begin : most_rows;
    for (int64_t m = 0; m < rows; ++m)
      offset_activations(args.q.q + (begin + m) * args.q.stride, weight.k, x + m * x_stride);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      multiply_panel(panel, lines, x, x_stride, rows, sums);
      scale_sums(args, panel, begin, rows, sums);
      store_tile(args, index, begin, rows, reinterpret_cast<const float*>(sums));
    }
  }
}

}  // namespace

constinit const LinearKernel kAvx512LinearW8A8 = {.name = "avx512/linear_w8a8",
                                                  .format = kFormat,
                                                  .activation = Activation::kInt8,
                                                  .isa = Isa::kAvx512,
                                                  .packed_bytes = packed_bytes<kFormat>,
                                                  .pack = pack_panels<kFormat>,
                                                  .scratch_bytes = scratch_bytes,
                                                  .run = run};

}  // namespace whit::cpu
