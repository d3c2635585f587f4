// AMX linears of int4_group weights and int8 activations, on the panels of avx512/linear_w4a8:
//   acc = fma(scale[n, g], float(Σ_k code · q − zero[n, g] · Σ_k q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
// The same bits as there. Few rows go there altogether; for more a panel's codes are unpacked once
// for all rows of a pass. Bound: with float scales every group's sums leave the tiles, 4 vector
// operations for 16 of them, about as long as the products of a group of 128.
#include <algorithm>

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

constexpr WeightFormat kFormat = WeightFormat::kInt4Group;

// A group is a whole number of steps; the last one may be padded.
int64_t step_columns(const PackedWeight& weight) {
  return weight.group_size >= weight.k || weight.group_size % kTileColumns == 0 ? kTileColumns
                                                                                : kTileColumns / 2;
}

// A panel's codes, one byte each, in lines of 4 K.
int64_t unpacked_bytes(const PackedWeight& weight) {
  return round_up(weight.k, kTileColumns) / 4 * kLineBytes;
}

int64_t own_scratch_bytes(const PackedWeight& weight, int64_t m) {
  return unpacked_bytes(weight) + tiles_bytes(pass_rows(weight.k, m), weight.k, kTileColumns);
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  return std::max(own_scratch_bytes(weight, m), kAvx512LinearW4A8.scratch_bytes(weight, m));
}

void unpack_lines(const std::byte* lines, int64_t count, std::byte* codes) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, codes += 2 * kLineBytes)
    for (int64_t v = 0; v < kLineBytes; v += 64) {
      const __m512i words = _mm512_loadu_si512(lines + v);
      _mm512_storeu_si512(codes + v, _mm512_and_si512(words, mask));
      _mm512_storeu_si512(codes + kLineBytes + v,
                          _mm512_and_si512(_mm512_srli_epi16(words, 4), mask));
    }
}

// acc [rows][32] += the group's scaled sums. Up to kExactColumns columns everything but the last
// step is a whole number below 2²⁴ and exact in f32.
constexpr int64_t kExactColumns = (1 << 24) / (15 * 127) / 2;
void add_group(const int32_t* c, const std::byte* scales, const uint8_t* zeros, bool exact,
               const int32_t* group_sums, int64_t group_sums_stride, int64_t rows, float* acc) {
  __m512 scale[2], zero[2];
  for (int v = 0; v < 2; ++v) {
    scale[v] =
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32 * v)));
    zero[v] = _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + 16 * v))));
  }
  for (int64_t m = 0; m < rows; ++m) {
    const int32_t sum = group_sums[m * group_sums_stride];
    const __m512 float_sum = _mm512_set1_ps(static_cast<float>(sum));
    for (int v = 0; v < 2; ++v, c += 16, acc += 16) {
      const __m512i whole = _mm512_loadu_si512(c);
      const __m512 dot = exact ? _mm512_fnmadd_ps(zero[v], float_sum, _mm512_cvtepi32_ps(whole))
                               : _mm512_cvtepi32_ps(_mm512_sub_epi32(
                                     whole, _mm512_mullo_epi32(_mm512_cvtps_epi32(zero[v]),
                                                               _mm512_set1_epi32(sum))));
      _mm512_storeu_ps(acc, _mm512_fmadd_ps(scale[v], dot, _mm512_loadu_ps(acc)));
    }
  }
}

void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastRows) return kAvx512LinearW4A8.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t k_step = step_columns(weight), step_bytes = k_step / 4 * kLineBytes;
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t groups = (weight.k + weight.group_size - 1) / weight.group_size;
  const int64_t a_stride = round_up(weight.k, k_step) * kTileRows;
  const int64_t most_rows = pass_rows(weight.k, args.m);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* a = reinterpret_cast<int8_t*>(codes + unpacked_bytes(weight));
  std::memset(codes, 0, unpacked_bytes(weight));
  alignas(64) int32_t
      c[2][kBlockRows * kPanelRows];  // in turn: a group's sums are read while the next are made
  alignas(64) float acc[kBlockRows * kPanelRows];
  const bool exact = std::min(weight.group_size, weight.k) <= kExactColumns;
  const Tiles tiles(k_step);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = std::min(share.row_end - begin, most_rows);
    pack_tiles(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k, k_step, a);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const auto* zeros =
          reinterpret_cast<const uint8_t*>(weight.data.as<std::byte>() + index * stride);
      const std::byte* first = reinterpret_cast<const std::byte*>(zeros) + zeros_bytes(groups);
      const int64_t whole_lines = lines_of(kFormat, std::min(weight.group_size, weight.k));
      const int64_t group_bytes = whole_lines * kLineBytes + kGroupScaleBytes;
      const auto lines_in = [&](int64_t g) {
        return lines_of(kFormat, std::min(weight.group_size, weight.k - g * weight.group_size));
      };
      for (int64_t g = 0; g < groups; ++g)
        unpack_lines(first + g * group_bytes, lines_in(g),
                     codes + 2 * g * whole_lines * kLineBytes);
      for (int64_t m = 0; m < rows; m += kBlockRows) {
        const int64_t some = std::min(rows - m, kBlockRows);
        std::memset(acc, 0, sizeof(float) * some * kPanelRows);
        const int8_t* block = a + m / kTileRows * a_stride;
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t step = g * weight.group_size / k_step;
          const int64_t steps = ceil_div(8 * lines_in(g), k_step);
          multiply_tiles(some, block + step * kTileRows * k_step, a_stride,
                         codes + step * step_bytes, steps, k_step, Sums::kStart, c[g % 2]);
          add_group(c[g % 2], first + g * group_bytes + lines_in(g) * kLineBytes,
                    zeros + g * kPanelRows, exact, args.q.group_sums + (begin + m) * groups + g,
                    groups, some, acc);
        }
        store_rows(args, index, begin + m, some, [&](int64_t i, int64_t v) {
          return _mm512_mul_ps(_mm512_load_ps(acc + i * kPanelRows + v),
                               _mm512_set1_ps(activation_scale(args.q, begin + m + i)));
        });
      }
    }
  }
}

}  // namespace

constinit const LinearKernel kAmxLinearW4A8 = {.name = "amx/linear_w4a8",
                                               .format = kFormat,
                                               .activation = Activation::kInt8,
                                               .isa = Isa::kAmx,
                                               .packed_bytes = packed_bytes<kFormat>,
                                               .pack = pack_panels<kFormat>,
                                               .scratch_bytes = scratch_bytes,
                                               .run = run};

}  // namespace whit::cpu
