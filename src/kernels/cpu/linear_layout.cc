#include "kernels/cpu/linear_layout.h"

#include <emmintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/avx2/pack_lines.h"
#include "tensor/e4m3.h"

namespace whit::cpu {
namespace {

// Lines packed at a time: 64 lines of the destination are 8 KB, which stay in L1 while 32 rows are
// scattered into them.
constexpr int64_t kChunkLines = 64;

// One row of the stack.
struct RowSource {
  const WeightView* part = nullptr;  // null past the last row
  int64_t row = 0;                   // of the part
  const uint8_t* data = nullptr;
};

// The rows of a panel, and whether AVX2 may pack them.
struct PanelSource {
  RowSource rows[kPanelRows];
  const uint8_t* data[kPanelRows];
  bool avx2;
  const RowSource& operator[](int64_t r) const { return rows[r]; }
};

RowSource find_row(std::span<const WeightView> parts, int64_t row) {
  for (const WeightView& part : parts) {
    if (row < part.n)
      return {&part, row, static_cast<const uint8_t*>(part.data) + row * part.data_row_bytes()};
    row -= part.n;
  }
  return {};
}

uint8_t zero_point(const RowSource& row, int64_t group) {
  const WeightView& part = *row.part;
  if (part.zeros == nullptr) return 8;
  return part.zeros[row.row * part.zero_row_bytes() + group / 2] >> (4 * (group & 1)) & 15;
}

// Eight codes in canonical order (nibble i is column i) to the packed order: a perfect shuffle of
// eight nibbles, made of two exchanges of the middle halves. Four words at a time.
inline __m128i shuffle_nibbles(__m128i words) {
  const auto exchange = [&](int keep, int up, int down, int shift) {
    return _mm_or_si128(
        _mm_and_si128(words, _mm_set1_epi32(keep)),
        _mm_or_si128(_mm_srli_epi32(_mm_and_si128(words, _mm_set1_epi32(up)), shift),
                     _mm_slli_epi32(_mm_and_si128(words, _mm_set1_epi32(down)), shift)));
  };
  words = exchange(static_cast<int>(0xff0000ffu), 0x00ff0000, 0x0000ff00, 8);
  return exchange(static_cast<int>(0xf00ff00fu), 0x0f000f00, 0x00f000f0, 4);
}

// Four words of a row from byte `at` on, zero from byte `end` on.
inline __m128i load_words(const uint8_t* row, int64_t at, int64_t end) {
  if (row == nullptr || at >= end) return _mm_setzero_si128();
  if (at + 16 <= end) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + at));
  alignas(16) uint8_t bytes[16] = {};
  std::memcpy(bytes, row + at, end - at);
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

// Lines [0, lines) at `to` from bytes [offset, offset + …) of each row of a panel; `row_end` is
// where rows end. Squares of four rows × four words are transposed in registers.
template <bool kNibbles>
void pack_lines_sse2(const uint8_t* const* rows, int64_t offset, int64_t row_end, int64_t lines,
                     std::byte* to) {
  for (int64_t chunk = 0; chunk < lines; chunk += kChunkLines) {
    const int64_t chunk_end = std::min(lines, chunk + kChunkLines);
    for (int64_t r = 0; r < kPanelRows; r += 4)
      for (int64_t line = chunk; line < chunk_end; line += 4) {
        __m128i w[4];
        for (int i = 0; i < 4; ++i) {
          w[i] = load_words(rows[r + i], offset + 4 * line, row_end);
          if constexpr (kNibbles) w[i] = shuffle_nibbles(w[i]);
        }
        const __m128i low01 = _mm_unpacklo_epi32(w[0], w[1]),
                      low23 = _mm_unpacklo_epi32(w[2], w[3]);
        const __m128i high01 = _mm_unpackhi_epi32(w[0], w[1]);
        const __m128i high23 = _mm_unpackhi_epi32(w[2], w[3]);
        const __m128i columns[4] = {
            _mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
            _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
        for (int64_t i = 0; i < std::min<int64_t>(4, chunk_end - line); ++i)
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (line + i) * kLineBytes + 4 * r),
                           columns[i]);
      }
  }
}

template <bool kNibbles>
void pack_lines(const PanelSource& rows, int64_t offset, int64_t row_end, int64_t lines,
                std::byte* to) {
  const auto pack = rows.avx2 ? avx2::pack_lines<kNibbles> : pack_lines_sse2<kNibbles>;
  pack(rows.data, offset, row_end, lines, to);
}

void pack_panel_int4(const PanelSource& rows, int64_t k, int64_t group_size, std::byte* to) {
  const int64_t groups = ceil_div(k, group_size);
  auto* zeros = reinterpret_cast<uint8_t*>(to);
  std::memset(zeros, 0, zeros_bytes(groups));
  to += zeros_bytes(groups);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t columns = std::min(group_size, k - g * group_size);
    const int64_t lines = lines_of(WeightFormat::kInt4Group, columns);
    pack_lines<true>(rows, g * group_size / 2, ceil_div(k, 2), lines, to);
    to += lines * kLineBytes;
    auto* scales = reinterpret_cast<uint16_t*>(to);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const auto& [part, row, data] = rows[r];
      scales[r] = 0;
      if (part == nullptr) continue;
      std::memcpy(&scales[r], static_cast<const uint8_t*>(part->scales) + 2 * (row * groups + g),
                  2);
      zeros[g * kPanelRows + r] = zero_point(rows[r], g);
    }
    to += kGroupScaleBytes;
  }
}

// Of columns [begin, end) of a row, begin even.
int32_t sum_of_codes(const uint8_t* row, int64_t begin, int64_t end) {
  const __m128i mask = _mm_set1_epi8(15), zero = _mm_setzero_si128();
  __m128i sums = zero;
  for (; begin + 32 <= end; begin += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + begin / 2));
    const __m128i both =
        _mm_add_epi8(_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    sums = _mm_add_epi64(sums, _mm_sad_epu8(both, zero));
  }
  int32_t sum = _mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_unpackhi_epi64(sums, sums));
  for (; begin < end; ++begin) sum += row[begin / 2] >> (4 * (begin & 1)) & 15;
  return sum;
}

void pack_panel_two_level(const PanelSource& rows, int64_t k, int64_t group_size, std::byte* to) {
  const int64_t groups = ceil_div(k, group_size);
  const int64_t lines = lines_of(WeightFormat::kInt4Group, k);
  std::memset(to, 0, kChannelHeaderBytes + 2 * zeros_bytes(groups));
  auto* steps = reinterpret_cast<float*>(to);
  auto* sums = reinterpret_cast<int32_t*>(to + 4 * kPanelRows);
  auto* multiples = reinterpret_cast<uint8_t*>(to + kChannelHeaderBytes);
  uint8_t* shares = multiples + zeros_bytes(groups);
  std::vector<uint8_t> of_row(groups);
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const auto& [part, row, data] = rows[r];
    if (part == nullptr) continue;
    steps[r] = two_level_row(*part, row, of_row.data());
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t zero = zero_point(rows[r], g);
      // The last group has what fills up its line: an odd row's last nibble, whatever it is, and
      // codes of 0.
      const bool last = g + 1 == groups;
      const int64_t begin = g * group_size, end = last ? round_up(k, 2) : begin + group_size;
      const int32_t codes = sum_of_codes(data, begin, end);
      const int64_t columns = last ? 8 * lines - begin : group_size;
      sums[r] += of_row[g] * (codes - zero * static_cast<int32_t>(columns));
      multiples[g * kPanelRows + r] = of_row[g];
      shares[g * kPanelRows + r] = static_cast<uint8_t>(of_row[g] * zero);
    }
  }
  pack_lines<true>(rows, 0, ceil_div(k, 2), lines,
                   to + kChannelHeaderBytes + 2 * zeros_bytes(groups));
}

// Of a row of e4m3 numbers: throws where one is NaN, which the kernels would take for 480.
void check_finite(const RowSource& row, int64_t k) {
  for (int64_t i = 0; i < k; ++i)
    if (e4m3_is_nan(row.data[i]))
      throw Error(ErrorKind::kInvalidData,
                  "an fp8 weight holds NaN in row {}, column {}; it is damaged: make the engine "
                  "again",
                  row.row, i);
}

// Of either kind of codes.
void pack_panel_scaled(const PanelSource& rows, int64_t k, std::byte* to) {
  auto* scales = reinterpret_cast<float*>(to);
  auto* sums = reinterpret_cast<int32_t*>(to + 4 * kPanelRows);
  for (int64_t r = 0; r < kPanelRows; ++r) {
    scales[r] = 0;
    sums[r] = 0;
    if (rows[r].part == nullptr) continue;
    std::memcpy(&scales[r], static_cast<const float*>(rows[r].part->scales) + rows[r].row, 4);
    if (rows[r].part->format == WeightFormat::kFp8Channel) {
      check_finite(rows[r], k);
      continue;
    }
    const auto* codes = reinterpret_cast<const int8_t*>(rows[r].data);
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += codes[i];
    sums[r] = sum;
  }
  pack_lines<false>(rows, 0, k, lines_of(WeightFormat::kInt8Channel, k), to + kChannelHeaderBytes);
}

template <bool kBF16>
void pack_panel_dense(const PanelSource& rows, int64_t k, std::byte* to) {
  constexpr WeightFormat kFormat = kBF16 ? WeightFormat::kBF16 : WeightFormat::kF32;
  constexpr int64_t kPerWord = columns_per_word(kFormat);
  const int64_t lines = lines_of(kFormat, k);
  const auto as_stored = [](const RowSource& row) {
    return row.part == nullptr || row.part->format == kFormat;
  };
  if (std::all_of(rows.rows, rows.rows + kPanelRows, as_stored)) {
    pack_lines<false>(rows, 0, k * (kBF16 ? 2 : 4), lines, to);
    return;
  }
  std::vector<float> values(kChunkLines * kPerWord);
  uint32_t words[kChunkLines];
  for (int64_t begin = 0; begin < lines; begin += kChunkLines) {
    const int64_t count = std::min(kChunkLines, lines - begin);
    const int64_t columns = std::min(count * kPerWord, k - begin * kPerWord);
    auto* line = reinterpret_cast<uint32_t*>(to + begin * kLineBytes);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      std::fill(values.begin(), values.end(), 0.0f);
      if (rows[r].part != nullptr) {
        WeightView chunk = *rows[r].part;  // the chunk's columns as a matrix of one row
        chunk.data = rows[r].data + begin * kPerWord * chunk.data_row_bytes() / chunk.k;
        chunk.k = columns;
        dequantize_rows(chunk, 0, 1, values.data());
      }
      for (int64_t i = 0; i < count; ++i) {
        if constexpr (kBF16)
          words[i] = uint32_t{f32_to_bf16(values[2 * i])} | uint32_t{f32_to_bf16(values[2 * i + 1])}
                                                                << 16;
        else
          words[i] = std::bit_cast<uint32_t>(values[i]);
      }
      for (int64_t i = 0; i < count; ++i) line[i * kPanelRows + r] = words[i];
    }
  }
}

}  // namespace

int64_t panel_bytes(WeightFormat format, int64_t k, int64_t group_size) {
  if (format == WeightFormat::kInt4Group) {
    // A group other than the last is a multiple of 8 columns, so groups share no line.
    const int64_t groups = ceil_div(k, group_size);
    return zeros_bytes(groups) + lines_of(format, k) * kLineBytes + groups * kGroupScaleBytes;
  }
  return lines_of(format, k) * kLineBytes + (scaled_rows(format) ? kChannelHeaderBytes : 0);
}

int64_t two_level_panel_bytes(int64_t k, int64_t group_size) {
  return kChannelHeaderBytes + 2 * zeros_bytes(ceil_div(k, group_size)) +
         lines_of(WeightFormat::kInt4Group, k) * kLineBytes;
}

int64_t packed_bytes_two_level(int64_t n, int64_t k, int64_t group_size) {
  return static_cast<int64_t>(
      checked_mul(ceil_div(n, kPanelRows), two_level_panel_bytes(k, group_size), "packed weight"));
}

template <WeightFormat format>
int64_t packed_bytes(int64_t n, int64_t k, int64_t group_size) {
  return static_cast<int64_t>(
      checked_mul(ceil_div(n, kPanelRows), panel_bytes(format, k, group_size), "packed weight"));
}

namespace {

// pack_panel(rows, to) for this worker's panels of `bytes` each.
template <typename PackPanel>
void for_panels(std::span<const WeightView> parts, PackedWeight& packed, int64_t bytes,
                const Worker& worker, PackPanel&& pack_panel) {
  const Range panels = split(ceil_div(packed.n, kPanelRows), 1, worker);
  for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
    PanelSource rows{.avx2 = packed.kernel->isa >= Isa::kAvx2};
    for (int64_t r = 0; r < kPanelRows; ++r) {
      rows.rows[r] = find_row(parts, panel * kPanelRows + r);
      rows.data[r] = rows.rows[r].data;
    }
    pack_panel(rows, packed.data.as<std::byte>() + panel * bytes);
  }
}

}  // namespace

void pack_panels_two_level(std::span<const WeightView> parts, PackedWeight& packed,
                           const Worker& worker) {
  for_panels(parts, packed, two_level_panel_bytes(packed.k, packed.group_size), worker,
             [&](const PanelSource& rows, std::byte* to) {
               pack_panel_two_level(rows, packed.k, packed.group_size, to);
             });
}

template <WeightFormat format>
void pack_panels(std::span<const WeightView> parts, PackedWeight& packed, const Worker& worker) {
  const int64_t bytes = panel_bytes(format, packed.k, packed.group_size);
  for_panels(parts, packed, bytes, worker, [&](const PanelSource& rows, std::byte* to) {
    if constexpr (format == WeightFormat::kInt4Group)
      pack_panel_int4(rows, packed.k, packed.group_size, to);
    else if constexpr (scaled_rows(format))
      pack_panel_scaled(rows, packed.k, to);
    else
      pack_panel_dense<format == WeightFormat::kBF16>(rows, packed.k, to);
  });
}

template int64_t packed_bytes<WeightFormat::kF32>(int64_t, int64_t, int64_t);
template int64_t packed_bytes<WeightFormat::kBF16>(int64_t, int64_t, int64_t);
template int64_t packed_bytes<WeightFormat::kInt4Group>(int64_t, int64_t, int64_t);
template int64_t packed_bytes<WeightFormat::kInt8Channel>(int64_t, int64_t, int64_t);
template int64_t packed_bytes<WeightFormat::kFp8Channel>(int64_t, int64_t, int64_t);
template void pack_panels<WeightFormat::kF32>(std::span<const WeightView>, PackedWeight&,
                                              const Worker&);
template void pack_panels<WeightFormat::kBF16>(std::span<const WeightView>, PackedWeight&,
                                               const Worker&);
template void pack_panels<WeightFormat::kInt4Group>(std::span<const WeightView>, PackedWeight&,
                                                    const Worker&);
template void pack_panels<WeightFormat::kInt8Channel>(std::span<const WeightView>, PackedWeight&,
                                                      const Worker&);
template void pack_panels<WeightFormat::kFp8Channel>(std::span<const WeightView>, PackedWeight&,
                                                     const Worker&);

LinearShare linear_share(const LinearArgs& args, int64_t row_unit, const Worker& worker,
                         int64_t pass_rows) {
  const int64_t panels = ceil_div(args.weight->n, kPanelRows);
  // workers = across panels × across rows; the split with the least work for the busiest worker,
  // fewest row parts first (a row part reads all the weights of its panels again). Work is counted
  // in panels × rows, 64 · K operations, for which an AMX thread takes as long as for K bytes from
  // beyond L2: 0.9 TOP/s beside 14 GB/s.
  int across_rows = 1;
  int64_t least = -1;
  for (int parts = 1; parts <= worker.count; ++parts) {
    if (worker.count % parts != 0) continue;
    const int64_t most_panels = ceil_div(panels, worker.count / parts);
    const int64_t rows = std::min(args.m, round_up(ceil_div(args.m, parts), row_unit));
    int64_t busiest = most_panels * rows;
    if (pass_rows > 0) busiest += most_panels * kPanelRows * ceil_div(rows, pass_rows) + rows;
    if (least < 0 || busiest < least) {
      least = busiest;
      across_rows = parts;
    }
  }
  const Worker panel_worker{worker.index / across_rows, worker.count / across_rows};
  const Worker row_worker{worker.index % across_rows, across_rows};
  const Range panel_range = split(panels, 1, panel_worker);
  const Range row_range = split(args.m, row_unit, row_worker);
  return {panel_range.begin, panel_range.end, row_range.begin, row_range.end};
}

void store_tile(const LinearArgs& args, int64_t panel, int64_t row_begin, int64_t rows,
                const float* tile) {
  const int64_t column = panel * kPanelRows;
  const int64_t columns = std::min(kPanelRows, args.weight->n - column);
  for (int64_t i = 0; i < rows; ++i, tile += kPanelRows) {
    float values[kPanelRows];
    std::memcpy(values, tile, sizeof(values));
    if (args.bias != nullptr)
      for (int64_t r = 0; r < columns; ++r) values[r] += args.bias[column + r];
    if (args.residual != nullptr) {
      const float* residual = args.residual + (row_begin + i) * args.residual_stride + column;
      for (int64_t r = 0; r < columns; ++r) values[r] += residual[r];
    }
    float* y = args.y + (row_begin + i) * args.y_stride + column;
    if (columns == kPanelRows)  // of a size known here it is no call
      std::memcpy(y, values, sizeof(values));
    else
      std::memcpy(y, values, 4 * columns);
  }
}

}  // namespace whit::cpu
