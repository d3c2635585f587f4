#include "kernels/cuda/linear_layout.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_dense.h"
#include "tensor/e4m3.h"

namespace whit::cuda {
namespace {

int bits_of(LinearFormat format) {
  switch (format) {
    case LinearFormat::kW4A16:
    case LinearFormat::kW4A8:
    case LinearFormat::kW4A8TwoLevel:
    case LinearFormat::kW4AFp8:
      return 4;
    case LinearFormat::kW8A16:
    case LinearFormat::kW8A8:
    case LinearFormat::kFp8:
      return 8;
    case LinearFormat::kBf16:
      break;
  }
  return 16;
}

// Whether a row has a scale of its own, after all tiles.
bool has_row_scales(LinearFormat format) {
  return format == LinearFormat::kW4A8TwoLevel || bits_of(format) == 8;
}

bool tiled(LinearFormat format) {
  return format != LinearFormat::kBf16 && format != LinearFormat::kFp8;
}

struct Source {
  const WeightView* part;
  int64_t row;
};

// The part and its row that row n of the stack is; part null in the padding.
Source source_of(std::span<const WeightView> parts, int64_t n) {
  for (const WeightView& part : parts) {
    if (n < part.n) return {&part, n};
    n -= part.n;
  }
  return {nullptr, 0};
}

uint8_t nibble(const uint8_t* row, int64_t i) { return (row[i / 2] >> (4 * (i % 2))) & 15; }

struct Int4Row {
  std::array<uint8_t, 128> codes;
  std::array<uint8_t, 4> zeros;
  std::array<uint16_t, 4> scales;
};

// Tile `tile` of one row; padding has the code of the zero point and, where a group holds nothing
// else, scale 0.
void read_int4(const Source& source, int64_t tile, int groups, Int4Row& out) {
  out.codes.fill(8);
  out.zeros.fill(8);
  out.scales.fill(0);
  if (source.part == nullptr) return;
  const WeightView& w = *source.part;
  const auto* codes = static_cast<const uint8_t*>(w.data) + source.row * w.data_row_bytes();
  const auto* scales = static_cast<const uint16_t*>(w.scales) + source.row * w.groups();
  const uint8_t* zeros = w.zeros == nullptr ? nullptr : w.zeros + source.row * w.zero_row_bytes();
  const int run = 128 / groups;
  for (int g = 0; g < groups; ++g) {
    const int64_t begin = tile * 128 + g * run;
    if (begin >= w.k) break;
    out.scales[g] = scales[begin / w.group_size];
    if (zeros != nullptr) out.zeros[g] = nibble(zeros, begin / w.group_size);
    for (int i = 0; i < run; ++i)
      out.codes[g * run + i] = begin + i < w.k ? nibble(codes, begin + i) : out.zeros[g];
  }
}

void pack_int4_block(LinearFormat format, std::span<const WeightView> parts,
                     const TileLayout& layout, int64_t block, std::byte* out) {
  const bool two_level = format == LinearFormat::kW4A8TwoLevel;
  std::array<Source, kTileRows> sources;
  // Two-level: of each row and group.
  std::vector<uint8_t> multiples(two_level ? kTileRows * static_cast<size_t>(layout.tiles) : 0);
  for (int row = 0; row < kTileRows; ++row) {
    sources[row] = source_of(parts, block * kTileRows + row);
    if (!two_level) continue;
    float step = 0;
    if (sources[row].part != nullptr)
      step = two_level_row(*sources[row].part, sources[row].row,
                           multiples.data() + static_cast<int64_t>(row) * layout.tiles);
    std::memcpy(out + layout.scales_offset() + (block * kTileRows + row) * 4, &step, 4);
  }
  Int4Row weights;
  for (int64_t tile = 0; tile < layout.tiles; ++tile) {
    auto* words =
        reinterpret_cast<uint32_t*>(out + block * layout.block_bytes() + tile * layout.tile_bytes);
    uint32_t* scale_words = words + kUnitBytes;  // 4 units of 256 words
    for (int row = 0; row < kTileRows; ++row) {
      read_int4(sources[row], tile, layout.groups, weights);
      const int unit = row / kUnitRows, r = row % kUnitRows;
      for (int t = 0; t < 4; ++t)
        for (int upper = 0; upper < 2; ++upper)
          for (int jj = 0; jj < 2; ++jj) {
            uint32_t word = 0;
            if (format == LinearFormat::kW4AFp8) {
              for (int i = 0; i < 2; ++i)
                for (int b = 0; b < 4; ++b) {
                  const uint32_t code = weights.codes[64 * i + 32 * jj + 8 * t + 4 * upper + b];
                  word |= (code & 7) << (4 * (4 * i + b)) | code >> 3 << (8 * b + 7 - 4 * i);
                }
            } else if (format != LinearFormat::kW4A16) {
              for (int i = 0; i < 2; ++i)
                for (int b = 0; b < 4; ++b)
                  word |= uint32_t{weights.codes[64 * i + 32 * jj + 8 * t + 4 * upper + b]}
                          << (8 * b + 4 * i);
            } else {
              for (int i = 0; i < 4; ++i)
                for (int b = 0; b < 2; ++b)
                  word |= uint32_t{weights.codes[32 * i + 16 * jj + 4 * t + 2 * upper + b]}
                          << (16 * b + 4 * i);
            }
            words[unit * 256 + unit_word(r, t, upper, jj)] = word;
          }
      for (int g = 0; g < layout.groups; ++g) {
        // bf16 has seven bits below the leading one: 128 + zero is 0x4300 + zero.
        const uint32_t zero =
            format != LinearFormat::kW4A16 ? weights.zeros[g] : 0x4300u + weights.zeros[g];
        const uint32_t scale = two_level ? multiples[row * layout.tiles + tile] : weights.scales[g];
        scale_words[(unit * layout.groups + g) * 16 + (r % 8) * 2 + r / 8] = scale | zero << 16;
      }
    }
  }
}

void pack_int8_block(LinearFormat format, std::span<const WeightView> parts,
                     const TileLayout& layout, int64_t block, std::byte* out) {
  auto* all_scales = reinterpret_cast<float*>(out + layout.scales_offset());
  for (int row = 0; row < kTileRows; ++row) {
    const Source source = source_of(parts, block * kTileRows + row);
    const int unit = row / kUnitRows, r = row % kUnitRows;
    const int8_t* codes = nullptr;
    int64_t k_end = 0;
    float scale = 0;
    if (source.part != nullptr) {
      k_end = source.part->k;
      codes = static_cast<const int8_t*>(source.part->data) + source.row * k_end;
      scale = static_cast<const float*>(source.part->scales)[source.row];
    }
    all_scales[block * kTileRows + row] = scale;
    for (int64_t tile = 0; tile < layout.tiles; ++tile) {
      auto* words = reinterpret_cast<uint32_t*>(out + block * layout.block_bytes() +
                                                tile * layout.tile_bytes);
      for (int t = 0; t < 4; ++t)
        for (int upper = 0; upper < 2; ++upper)
          for (int jj = 0; jj < 2; ++jj) {
            uint32_t word = 0;
            for (int b = 0; b < 4; ++b) {
              const int inside = format == LinearFormat::kW8A8
                                     ? 32 * jj + 8 * t + 4 * upper + b
                                     : b / 2 * 32 + 16 * jj + 4 * t + 2 * upper + b % 2;
              const int64_t k = tile * 64 + inside;
              if (k < k_end) word |= uint32_t{static_cast<uint8_t>(codes[k])} << (8 * b);
            }
            const int at = format == LinearFormat::kW8A8 ? unit_word_w8a8(r, t, upper, jj)
                                                         : unit_word(r, t, upper, jj);
            words[unit * 256 + at] = word;
          }
    }
  }
}

void pack_bf16_row(const Source& source, int64_t k, int64_t row, std::vector<float>& scratch,
                   std::byte* out) {
  scratch.resize(static_cast<size_t>(k));
  dequantize_rows(*source.part, source.row, source.row + 1, scratch.data());
  auto* to = reinterpret_cast<uint16_t*>(out) + row * k;
  for (int64_t i = 0; i < k; ++i) to[i] = f32_to_bf16(scratch[i]);
}

void pack_fp8_row(const Source& source, int64_t n, int64_t k, int64_t row, std::byte* out) {
  const auto* codes = static_cast<const uint8_t*>(source.part->data) + source.row * k;
  for (int64_t i = 0; i < k; ++i)
    if (e4m3_is_nan(codes[i]))
      throw Error(ErrorKind::kInvalidData,
                  "an fp8 weight holds NaN in row {}, column {}; it is damaged: make the engine "
                  "again",
                  source.row, i);
  const int64_t bytes = fp8_row_bytes(k);
  std::memcpy(out + row * bytes, codes, static_cast<size_t>(k));
  std::memset(out + row * bytes + k, 0, static_cast<size_t>(bytes - k));
  std::memcpy(out + n * bytes + row * 4,
              static_cast<const float*>(source.part->scales) + source.row, 4);
}

bool accepts(LinearFormat format, WeightFormat source) {
  if (bits_of(format) == 4) return source == WeightFormat::kInt4Group;
  if (tiled(format)) return source == WeightFormat::kInt8Channel;
  if (format == LinearFormat::kFp8) return source == WeightFormat::kFp8Channel;
  return source == WeightFormat::kF32 || source == WeightFormat::kF16 ||
         source == WeightFormat::kBF16;
}

bool has_zero_points(std::span<const WeightView> parts) {
  for (const WeightView& part : parts) {
    if (part.zeros == nullptr) continue;
    for (int64_t row = 0; row < part.n; ++row)
      for (int64_t g = 0; g < part.groups(); ++g)
        if (nibble(part.zeros + row * part.zero_row_bytes(), g) != 8) return true;
  }
  return false;
}

}  // namespace

std::string_view name(LinearFormat format) {
  constexpr std::array<std::string_view, 8> kNames = {
      "bf16", "w4a16", "w4a8", "w8a16", "w8a8", "fp8", "w4a8 of two-level scales", "w4afp8"};
  return kNames[static_cast<size_t>(format)];
}

LinearInput input_of(LinearFormat format) {
  if (format == LinearFormat::kW4A8 || format == LinearFormat::kW4A8TwoLevel ||
      format == LinearFormat::kW8A8)
    return LinearInput::kInt8;
  return format == LinearFormat::kFp8 || format == LinearFormat::kW4AFp8 ? LinearInput::kE4m3
                                                                         : LinearInput::kBf16;
}

int64_t packed_bytes(LinearFormat format, int64_t n, int64_t k, int64_t group_size) {
  if (n < 1 || k < 1 || n > (int64_t{1} << 28) || k > (int64_t{1} << 24))
    throw Error(ErrorKind::kInvalidArgument, "CUDA linear: a weight of {} x {}", n, k);
  if (format == LinearFormat::kBf16) return n * k * 2;
  if (format == LinearFormat::kFp8) return n * fp8_row_bytes(k) + n * 4;
  const int bits = bits_of(format);
  if (bits == 4 && group_size != 32 && group_size != 64 && group_size != 128)
    throw Error(ErrorKind::kUnsupported,
                "CUDA linear {}: groups of {}; kernels exist for 32, 64 and 128", name(format),
                group_size);
  if (format == LinearFormat::kW4A8TwoLevel && group_size != 128)
    throw Error(ErrorKind::kUnsupported, "CUDA linear {}: groups of {}; kernels exist for 128",
                name(format), group_size);
  const TileLayout layout = tile_layout(bits, n, k, group_size);
  return layout.scales_offset() +
         (has_row_scales(format) ? int64_t{layout.row_blocks} * kTileRows * 4 : 0);
}

LinearWeight pack_linear(LinearFormat format, std::span<const WeightView> parts, std::byte* out,
                         ThreadPool& pool) {
  LinearWeight weight;
  weight.format = format;
  for (const WeightView& part : parts) {
    if (!accepts(format, part.format))
      throw Error(ErrorKind::kInvalidArgument, "CUDA linear {}: cannot be packed from {}",
                  name(format), whit::name(part.format));
    if (part.k != parts[0].k || part.group_size != parts[0].group_size)
      throw Error(ErrorKind::kInvalidArgument,
                  "CUDA linear {}: parts of K {} in groups of {} and of K {} in groups of {} do "
                  "not stack",
                  name(format), parts[0].k, parts[0].group_size, part.k, part.group_size);
    weight.n += part.n;
  }
  if (parts.empty())
    throw Error(ErrorKind::kInvalidArgument, "CUDA linear {}: nothing to pack", name(format));
  weight.k = parts[0].k;
  weight.group_size = bits_of(format) == 4 ? parts[0].group_size : 0;
  packed_bytes(format, weight.n, weight.k, weight.group_size);  // checks shape and group size
  if (!tiled(format)) {
    pool.parallel_for(weight.n, [&](int64_t begin, int64_t end) {
      std::vector<float> scratch;
      for (int64_t row = begin; row < end; ++row) {
        const Source source = source_of(parts, row);
        if (format == LinearFormat::kFp8)
          pack_fp8_row(source, weight.n, weight.k, row, out);
        else
          pack_bf16_row(source, weight.k, row, scratch, out);
      }
    });
    return weight;
  }
  weight.zero_points = has_zero_points(parts);
  const TileLayout layout = tile_layout(bits_of(format), weight.n, weight.k, weight.group_size);
  pool.parallel_for(layout.row_blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      if (layout.bits == 4)
        pack_int4_block(format, parts, layout, block, out);
      else
        pack_int8_block(format, parts, layout, block, out);
    }
  });
  return weight;
}

}  // namespace whit::cuda
