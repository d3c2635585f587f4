// Linears with f32 activations for one vector ISA: y[m, n] = Σ_k w[n, k] · x[m, k] (+ bias) (+
// residual).
//
// Included by avx2/linear_float.cc and avx512/linear_float.cc, each of which passes its vector type
// V from an unnamed namespace: every instantiation is local to that file, so no code compiled for
// one ISA can be linked into another.
//
// Order: one chain of fused multiply-adds per output, k ascending, whatever M is and however K is
// blocked (a block's sums are stored as f32 and carried on). int4 weights are (code − zero) ·
// scale, exact in f32; int8_channel and fp8_channel sum code · x and multiply the sum by the row's
// scale.
//
// M ≤ V::kMostDirectRows: a panel's words are widened in registers and used at once (bound by the
// panel's bytes). More: blocks of kBlockColumns × 32 rows, which L1 and L2 hold, are used by every
// row of x in tiles of kTileRows × kTileColumns outputs kept in registers (bound by the FMA units).
// A block is the panel itself where that is f32, else its columns widened to f32 in scratch.
#pragma once

#include "kernels/cpu/linear_layout.h"
#include "kernels/cpu/repeat.h"

namespace whit::cpu {

// V is documented by its first instance, in avx2/linear_float.cc.
template <class V, WeightFormat format>
struct FloatLinear {
  using Reg = typename V::Reg;
  using Words = typename V::Words;
  static constexpr int kPanelVectors = kPanelRows / V::kLanes;
  static constexpr int kTileColumns = V::kLanes * V::kTileVectors;
  static constexpr int kPerWord = columns_per_word(format);
  static constexpr bool kScaledRows = scaled_rows(format);
  static constexpr int64_t kBlockColumns = V::kBlockColumns;
  // Rows of x per block: their K columns should stay in L2 while all panels pass by.
  static constexpr int64_t kBlockBytes = 256 << 10;
  static constexpr int64_t kLeastBlockRows = 48, kMostBlockRows = 192;
  // Far enough to cover DRAM latency at one core's bandwidth, near enough to stay in L1.
  static constexpr int64_t kPrefetchBytes = 8192;

  // What turns a column's code into a weight: (code · scale − offset), per row of the panel.
  struct Dequant {
    Reg scale[kPanelVectors], offset[kPanelVectors];
  };

  // Widens column I of a line's words.
  template <int I>
  static inline __attribute__((always_inline)) Reg widen(Words words, Reg scale, Reg offset) {
    if constexpr (format == WeightFormat::kF32) return V::as_float(words);
    if constexpr (format == WeightFormat::kBF16)
      return I == 0 ? V::as_float(V::template shift_left<16>(words))
                    : V::as_float(V::and_bits(words, 0xffff0000u));
    if constexpr (format == WeightFormat::kInt8Channel)
      return V::to_float(
          V::template shift_right_signed<24>(V::template shift_left<24 - 8 * I>(words)));
    if constexpr (format == WeightFormat::kFp8Channel) {
      // As the same fields of an f32 a number is 2^120 times too small (tensor/e4m3.h).
      const Words fields =
          V::template shift_right_signed<4>(V::template shift_left<24 - 8 * I>(words));
      return V::multiply(V::as_float(V::and_bits(fields, 0x87f00000u)), V::constant(0x1p120f));
    }
    if constexpr (format == WeightFormat::kInt4Group) {
      constexpr int kShift = I < 4 ? 8 * I : 8 * (I - 4) + 4;
      const Words shifted = V::template shift_right<kShift>(words);
      const Words code = kShift == 28 ? shifted : V::and_bits(shifted, 15);
      return V::multiply_subtract(V::to_float(code), scale, offset);
    }
  }

  // Where a run of lines that share a Dequant begins.
  struct Segment {
    const std::byte* lines;
    int64_t columns;
  };

  // Walks a panel in segments: the groups of int4 weights, everything at once for the others.
  struct PanelReader {
    const PackedWeight& weight;
    const std::byte* next;
    const uint8_t* zeros = nullptr;
    int64_t columns_left;

    PanelReader(const PackedWeight& w, const std::byte* panel)
        : weight(w), next(panel), columns_left(w.k) {
      if constexpr (format == WeightFormat::kInt4Group) {
        zeros = reinterpret_cast<const uint8_t*>(panel);
        next += zeros_bytes((w.k + w.group_size - 1) / w.group_size);
      }
      if constexpr (kScaledRows) next += kChannelHeaderBytes;
    }

    inline __attribute__((always_inline)) Segment read(Dequant& dequant) {
      Segment segment{next, columns_left};
      if constexpr (format == WeightFormat::kInt4Group) {
        if (segment.columns > weight.group_size) segment.columns = weight.group_size;
        next += lines_of(format, segment.columns) * kLineBytes;
        for (int v = 0; v < kPanelVectors; ++v) {
          dequant.scale[v] = V::load_f16(next + 2 * V::kLanes * v);
          dequant.offset[v] = V::multiply(dequant.scale[v], V::load_u8(zeros + V::kLanes * v));
        }
        next += kGroupScaleBytes;
        zeros += kPanelRows;
      }
      columns_left -= segment.columns;
      return segment;
    }
  };

  // One line, all its columns, MR rows of x.
  template <int MR>
  static inline __attribute__((always_inline)) void add_line(const std::byte* line, const float* x,
                                                             int64_t x_stride,
                                                             const Dequant& dequant,
                                                             Reg (&sums)[MR][kPanelVectors]) {
    Words words[kPanelVectors];
    repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
      words[v] = V::load_words(line + 4 * V::kLanes * v);
    });
    repeat<kPerWord>([&](auto i) __attribute__((always_inline)) {
      repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
        const Reg w = widen<i>(words[v], dequant.scale[v], dequant.offset[v]);
        repeat<MR>([&](auto m) __attribute__((always_inline)) {
          sums[m][v] = V::fma(w, V::broadcast(x + m * x_stride + i), sums[m][v]);
        });
      });
    });
  }

  // Whole panel × MR rows of x without scratch; out [MR][32].
  template <int MR>
  static void multiply_panel(const PackedWeight& weight, const std::byte* panel, const float* x,
                             int64_t x_stride, float* out) {
    Reg sums[MR][kPanelVectors];
    repeat<MR * kPanelVectors>([&](auto i) __attribute__((always_inline)) {
      sums[i / kPanelVectors][i % kPanelVectors] = V::zero();
    });
    PanelReader reader(weight, panel);
    while (reader.columns_left > 0) {
      Dequant dequant;
      const Segment segment = reader.read(dequant);
      const std::byte* line = segment.lines;
      int64_t k = 0;
      for (; k + kPerWord <= segment.columns; k += kPerWord, line += kLineBytes, x += kPerWord) {
        V::prefetch(line + kPrefetchBytes);
        V::prefetch(line + kPrefetchBytes + 64);
        add_line<MR>(line, x, x_stride, dequant, sums);
      }
      if (k < segment.columns) {
        float last[MR * kPerWord] = {};
        for (int m = 0; m < MR; ++m)
          for (int64_t i = k; i < segment.columns; ++i)
            last[m * kPerWord + i - k] = x[m * x_stride + i - k];
        add_line<MR>(line, last, kPerWord, dequant, sums);
      }
    }
    repeat<MR * kPanelVectors>([&](auto i) __attribute__((always_inline)) {
      V::store(out + V::kLanes * i, sums[i / kPanelVectors][i % kPanelVectors]);
    });
  }

  using DirectFunction = void (*)(const PackedWeight&, const std::byte*, const float*, int64_t,
                                  float*);
  template <int... M>
  static DirectFunction direct_function(int64_t rows, std::integer_sequence<int, M...>) {
    static constexpr DirectFunction kFunctions[] = {multiply_panel<M + 1>...};
    return kFunctions[rows - 1];
  }

  // Lines → f32 [32 / kTileColumns][kBlockColumns][kTileColumns], from column `at` of the block on.
  static void widen_lines(const std::byte* line, int64_t lines, const Dequant& dequant,
                          float* block, int64_t at) {
    for (int64_t i = 0; i < lines; ++i, line += kLineBytes, at += kPerWord)
      repeat<kPanelVectors>([&](auto v) __attribute__((always_inline)) {
        V::prefetch(line + kPrefetchBytes + 4 * V::kLanes * v);
        const Words words = V::load_words(line + 4 * V::kLanes * v);
        float* to = block + (v / V::kTileVectors * kBlockColumns + at) * kTileColumns +
                    v % V::kTileVectors * V::kLanes;
        repeat<kPerWord>([&](auto c) __attribute__((always_inline)) {
          V::store(to + c * kTileColumns, widen<c>(words, dequant.scale[v], dequant.offset[v]));
        });
      });
  }

  // Floats from a column of a block to the next, and from a tile's columns to the next tile's.
  static constexpr bool kWidened = format != WeightFormat::kF32;
  static constexpr int64_t kColumnStride = kWidened ? kTileColumns : kPanelRows;
  static constexpr int64_t kTileStride = kTileColumns * (kWidened ? kBlockColumns : 1);

  // sums [MR][32] = x · block, added to them unless `first`, for the block's `columns` columns and
  // kTileColumns of the panel's rows.
  template <int MR>
  static void multiply_tile(const float* block, int64_t columns, const float* x, int64_t x_stride,
                            bool first, float* sums) {
    constexpr int kVectors = V::kTileVectors;
    Reg acc[MR][kVectors];
    repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
      const float* from = sums + i / kVectors * kPanelRows + V::kLanes * (i % kVectors);
      acc[i / kVectors][i % kVectors] = first ? V::zero() : V::load(from);
    });
    for (int64_t k = 0; k < columns; ++k, block += kColumnStride) {
      Reg w[kVectors];
      repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
        w[v] = V::load(block + V::kLanes * v);
      });
      repeat<MR>([&](auto m) __attribute__((always_inline)) {
        const Reg value = V::broadcast(x + m * x_stride + k);
        repeat<kVectors>([&](auto v) __attribute__((always_inline)) {
          acc[m][v] = V::fma(w[v], value, acc[m][v]);
        });
      });
    }
    repeat<MR * kVectors>([&](auto i) __attribute__((always_inline)) {
      V::store(sums + i / kVectors * kPanelRows + V::kLanes * (i % kVectors),
               acc[i / kVectors][i % kVectors]);
    });
  }

  using TileFunction = void (*)(const float*, int64_t, const float*, int64_t, bool, float*);
  template <int... M>
  static TileFunction tile_function(int64_t rows, std::integer_sequence<int, M...>) {
    static constexpr TileFunction kFunctions[] = {multiply_tile<M + 1>...};
    return kFunctions[rows - 1];
  }

  // All rows of x · one block of the panel. `next` is what will be read after it: its
  // `next_lines` cache lines are brought to L2 meanwhile.
  static void multiply_block(const float* block, int64_t columns, const float* x, int64_t x_stride,
                             int64_t rows, bool first, const float* next, int64_t next_lines,
                             float* sums) {
    constexpr int kTiles = kPanelRows / kTileColumns;
    const int64_t calls = kTiles * ((rows + V::kTileRows - 1) / V::kTileRows);
    const int64_t lines = (next_lines + calls - 1) / calls;
    for (int tile = 0; tile < kTiles; ++tile)
      for (int64_t m = 0; m < rows; m += V::kTileRows) {
        for (int64_t i = 0; i < lines; ++i, next += 16) __builtin_prefetch(next, 0, 2);
        const int64_t count = rows - m < V::kTileRows ? rows - m : V::kTileRows;
        tile_function(count, std::make_integer_sequence<int, V::kTileRows>{})(
            block + tile * kTileStride, columns, x + m * x_stride, x_stride, first,
            sums + m * kPanelRows + tile * kTileColumns);
      }
  }

  // Whole panel × any number of rows of x, in blocks; sums [rows][32]. `block` is scratch.
  static void multiply_panel_blocked(const PackedWeight& weight, const std::byte* panel,
                                     const float* x, int64_t x_stride, int64_t rows, float* block,
                                     float* sums) {
    if constexpr (!kWidened) {
      const auto* next = reinterpret_cast<const float*>(panel);
      for (int64_t k = 0; k < weight.k; k += kBlockColumns) {
        const int64_t columns = weight.k - k < kBlockColumns ? weight.k - k : kBlockColumns;
        const float* at = next;
        next += columns * kPanelRows;
        multiply_block(at, columns, x + k, x_stride, rows, k == 0, next, 2 * columns, sums);
      }
      return;
    }
    PanelReader reader(weight, panel);
    bool first = true;
    int64_t filled = 0;  // columns of the block
    const auto flush = [&] {
      multiply_block(block, filled, x, x_stride, rows, first, nullptr, 0, sums);
      first = false;
      x += filled;
      filled = 0;
    };
    while (reader.columns_left > 0) {
      Dequant dequant;
      Segment segment = reader.read(dequant);
      while (segment.columns > 0) {
        const int64_t space = kBlockColumns - filled;
        const int64_t columns = segment.columns < space ? segment.columns : space;
        const int64_t lines = lines_of(format, columns);
        widen_lines(segment.lines, lines, dequant, block, filled);
        segment.lines += lines * kLineBytes;
        segment.columns -= columns;
        filled += columns;
        if (filled == kBlockColumns) flush();
      }
    }
    if (filled > 0) flush();
  }

  static int64_t block_rows(const PackedWeight& weight, int64_t m) {
    int64_t rows = kBlockBytes / (4 * weight.k);
    rows = rows < kLeastBlockRows ? kLeastBlockRows : rows > kMostBlockRows ? kMostBlockRows : rows;
    rows -= rows % V::kTileRows;
    return rows < m ? rows : m;
  }

  static int64_t scratch_bytes(const PackedWeight& weight, int64_t m) {
    return 4 * kPanelRows * (kBlockColumns + block_rows(weight, m));
  }

  // y = sums (· the channels' scales) (+ bias) (+ residual)
  static void finish(const LinearArgs& args, const std::byte* panel, int64_t panel_index,
                     int64_t row_begin, int64_t rows, float* sums) {
    const int64_t column = panel_index * kPanelRows;
    const bool whole = column + kPanelRows <= args.weight->n;
    const auto* scales = reinterpret_cast<const float*>(panel);  // where rows have them
    for (int64_t m = 0; m < rows; ++m)
      for (int v = 0; v < kPanelVectors; ++v) {
        const int64_t lane = V::kLanes * v;
        float* at = sums + m * kPanelRows + lane;
        Reg value = V::load(at);
        if constexpr (kScaledRows) value = V::multiply(value, V::load(scales + lane));
        if (!whole) {
          V::store(at, value);
          continue;
        }
        if (args.bias != nullptr) value = V::add(value, V::load(args.bias + column + lane));
        if (args.residual != nullptr)
          value = V::add(value, V::load(args.residual + (row_begin + m) * args.residual_stride +
                                        column + lane));
        V::store(args.y + (row_begin + m) * args.y_stride + column + lane, value);
      }
    if (!whole) store_tile(args, panel_index, row_begin, rows, sums);
  }

  static void run(const LinearArgs& args, const Worker& worker) {
    const PackedWeight& weight = *args.weight;
    const LinearShare share = linear_share(args, V::kTileRows, worker);
    const int64_t stride = panel_bytes(format, weight.k, weight.group_size);
    const std::byte* panels = weight.data.template as<std::byte>();
    auto* block =
        reinterpret_cast<float*>(worker_scratch(args, scratch_bytes(weight, args.m), worker));
    float* sums = block + kPanelRows * kBlockColumns;
    const int64_t most_rows = block_rows(weight, args.m);
    for (int64_t m = share.row_begin; m < share.row_end; m += most_rows) {
      const int64_t rows = share.row_end - m < most_rows ? share.row_end - m : most_rows;
      const float* x = args.x + m * args.x_stride;
      for (int64_t index = share.panel_begin; index < share.panel_end; ++index) {
        const std::byte* panel = panels + index * stride;
        if (rows <= V::kMostDirectRows)
          direct_function(rows, std::make_integer_sequence<int, V::kMostDirectRows>{})(
              weight, panel, x, args.x_stride, sums);
        else
          multiply_panel_blocked(weight, panel, x, args.x_stride, rows, block, sums);
        finish(args, panel, index, m, rows, sums);
      }
    }
  }

  static constexpr LinearKernel row(std::string_view name, Isa isa) {
    return {.name = name,
            .format = format,
            .activation = Activation::kFloat,
            .isa = isa,
            .packed_bytes = packed_bytes<format>,
            .pack = pack_panels<format>,
            .scratch_bytes = scratch_bytes,
            .run = run};
  }
};

}  // namespace whit::cpu
