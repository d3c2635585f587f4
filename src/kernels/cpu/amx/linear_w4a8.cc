// AMX linears of int4_group weights and int8 activations, on the panels of avx512/linear_w4a8:
//   acc = fma(scale[n, g], float(Σ_k (code − zero[n, g]) · q), acc) over groups g ascending
//   y[m, n] = acc · x_scale[m] (+ bias) (+ residual)
// The same bits as there. Few rows go there altogether; for more a panel's codes are unpacked once
// for all rows of a pass, zero points subtracted. Bound: with float scales every group's sums leave
// the tiles: storing the four and scaling them, between the steps of the next group, costs more
// than the eight products of a group of 128. The tiles alone, stored but not scaled, reach 61 % of
// tdpbssd's rate.
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

// Rows of activations per pass over the panels: they should stay in L2.
int64_t pass_rows(int64_t k, int64_t m) {
  constexpr int64_t kPassBytes = 768 << 10, kMostRows = 1024;
  const int64_t rows = std::clamp(kPassBytes / k / kBlockRows * kBlockRows, kBlockRows, kMostRows);
  return std::min(rows, m);
}

// A panel's codes, one byte each, in lines of 4 K.
int64_t unpacked_bytes(const PackedWeight& weight) {
  return round_up(weight.k, kTileColumns) / 4 * kLineBytes;
}

int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
  const int64_t own =
      unpacked_bytes(weight) + ActivationTiles::scratch_bytes(pass_rows(weight.k, m), weight.k);
  return std::max(own, kAvx512LinearW4A8.scratch_bytes(weight, m));
}

// Codes − zero points. Columns past the last have activations of zero.
void unpack_lines(const std::byte* lines, int64_t count, const uint8_t* zeros, std::byte* codes) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i zero[2];
  for (int v = 0; v < 2; ++v)
    zero[v] = _mm512_mullo_epi32(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + 16 * v))),
        _mm512_set1_epi32(0x01010101));
  for (int64_t i = 0; i < count; ++i, lines += kLineBytes, codes += 2 * kLineBytes)
    for (int v = 0; v < 2; ++v) {
      const __m512i words = _mm512_loadu_si512(lines + 64 * v);
      _mm512_storeu_si512(codes + 64 * v, _mm512_sub_epi8(_mm512_and_si512(words, mask), zero[v]));
      _mm512_storeu_si512(
          codes + kLineBytes + 64 * v,
          _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(words, 4), mask), zero[v]));
    }
}

// acc [rows][32] += the group's scaled sums, of rows [begin, end).
void add_group(const int32_t* c, const std::byte* scales, int64_t begin, int64_t end, float* acc) {
  __m512 scale[2];
  for (int v = 0; v < 2; ++v)
    scale[v] =
        _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32 * v)));
  c += begin * kPanelRows;
  acc += begin * kPanelRows;
  for (int64_t m = begin; m < end; ++m)
    for (int v = 0; v < 2; ++v, c += 16, acc += 16)
      _mm512_store_ps(acc, _mm512_fmadd_ps(scale[v], _mm512_cvtepi32_ps(_mm512_load_si512(c)),
                                           _mm512_load_ps(acc)));
}

void run(const LinearArgs& args, const Worker& worker) {
  if (args.m < kLeastRows) return kAvx512LinearW4A8.run(args, worker);
  const PackedWeight& weight = *args.weight;
  const LinearShare share = linear_share(args, kBlockRows, worker);
  if (share.panel_begin == share.panel_end) return;
  const int64_t k_step = step_columns(weight), step_bytes = k_step / 4 * kLineBytes;
  const int64_t stride = panel_bytes(kFormat, weight.k, weight.group_size);
  const int64_t size = std::min(weight.group_size, weight.k), groups = ceil_div(weight.k, size);
  const int64_t group_bytes = lines_of(kFormat, size) * kLineBytes + kGroupScaleBytes;
  const auto lines_in = [&](int64_t g) {
    return lines_of(kFormat, std::min(size, weight.k - g * size));
  };
  const int64_t most_rows = pass_rows(weight.k, args.m);
  std::byte* codes = worker_scratch(args, scratch_bytes(weight, args.m), worker);
  auto* copies = reinterpret_cast<int8_t*>(codes + unpacked_bytes(weight));
  // In turn: a group's sums are read while the next are made.
  alignas(64) int32_t c[2][kBlockRows * kPanelRows];
  alignas(64) float acc[kBlockRows * kPanelRows];
  const Tiles tiles(k_step);
  for (int64_t begin = share.row_begin; begin < share.row_end; begin += most_rows) {
    const int64_t rows = std::min(share.row_end - begin, most_rows);
    const ActivationTiles a(args.q.q + begin * args.q.stride, args.q.stride, rows, weight.k, k_step,
                            copies);
    for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
      const std::byte* panel = weight.data.as<std::byte>() + index * stride;
      const std::byte* first = panel + zeros_bytes(groups);
      for (int64_t g = 0; g < groups; ++g)
        unpack_lines(first + g * group_bytes, lines_in(g),
                     reinterpret_cast<const uint8_t*>(panel) + g * kPanelRows,
                     codes + g * size / k_step * step_bytes);
      const auto scales_of = [&](int64_t g) {
        return first + g * group_bytes + lines_in(g) * kLineBytes;
      };
      // The next panel, while this one's products run.
      const int64_t turns = ceil_div(rows, kBlockRows) * groups;
      BlockPrefetch prefetch{panel + stride,
                             index + 1 < share.panel_end ? ceil_div(stride / 64, turns) : 0};
      const int64_t rows_a_group = ceil_div(kBlockRows, groups);
      for (int64_t m = 0; m < rows; m += kBlockRows) {
        const int64_t some = std::min(rows - m, kBlockRows);
        std::memset(acc, 0, sizeof(float) * some * kPanelRows);
        for (int64_t g = 0; g < groups; ++g) {
          const int64_t steps = ceil_div(8 * lines_in(g), k_step);
          const Operands now =
              operands(a, m, some, g * size, codes + g * size / k_step * step_bytes);
          prefetch.step();
          prefetch_rows(args, index, begin + m + std::min(g * rows_a_group, some),
                        begin + m + std::min((g + 1) * rows_a_group, some));
          // The group before is scaled between the steps of this one.
          multiply_tiles<Ahead::kNone>(
              now, now, steps, k_step, nullptr, c[g % 2], [&](int64_t step) {
                if (g == 0) return;
                add_group(c[(g - 1) % 2], scales_of(g - 1), some * step / steps,
                          some * (step + 1) / steps, acc);
              });
        }
        add_group(c[(groups - 1) % 2], scales_of(groups - 1), 0, some, acc);
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
