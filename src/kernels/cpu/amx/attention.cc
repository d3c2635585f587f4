// Attention over bf16 caches by tiles. As small_ops_attention.h states, but that a chunk of 256
// tokens is one block of the softmax: per query and head
//   s_j = Σ_d u_d · k_jd              u = q · scale in bf16; Dh in steps of 32, as tdpbf16ps adds
//   m   = max_j s_j,  p_j = exp(s_j − m) in bf16, 0 where masked
//   l   = Σ_j p_j                     of the rounded p, in 16 lanes
//   o_d = Σ_j p_j · v_jd              tokens in steps of 32, as tdpbf16ps adds
// and chunks are put together in ascending order. A row of a tile does not depend on the others, so
// a query's result has the same bits in a tile of one row and of sixteen.
//
// Three passes over two tiles of rows and a chunk, through a buffer in L1: scores, weights in their
// place, sums. A tile load waits for stores on their way to L1, so a pass must be long (with passes
// of 64 tokens tiles gain nothing over vectors). Keys and values of a chunk come from L2 for each
// two tiles. Weights are made of eight rows at a time, whose largest scores are found together: one
// row's would be waited for.
#include "kernels/cpu/amx/attention.h"

#include "kernels/cpu/amx/tiles.h"
#include "kernels/cpu/avx512/attention.h"
#include "kernels/cpu/avx512/bf16_write.h"
#include "kernels/cpu/avx512/float_vector.h"
#include "kernels/cpu/small_ops_flash.h"

namespace whit::cpu::amx {
namespace {

using V = Avx512::V;

constexpr int64_t kBlocksPerChunk = kChunkTokens / kKvBlockTokens;
constexpr int64_t kTileNumbers = 16 * 32;  // of bf16: 1 KB
// Floats from a tile of scores to the next: with 256 a row's loads would have the low address bits
// of the stores two tiles before, and wait for them.
constexpr int64_t kScorePitch = 16 * 16 + 16;
constexpr int64_t kChunkScores = kChunkTokens / 16 * kScorePitch;  // of a row tile
constexpr int kWeighedRows = 8;                                    // at a time

struct Scratch {
  std::byte* parts;
  uint16_t* q;  // [row tiles][Dh / 32][16][32]
  // [2 row tiles][16 tiles of tokens][16 rows][16], kScorePitch and kChunkScores apart; of each two
  // tiles the first becomes weights, [16 rows][32] in bf16.
  float* scores;
  int64_t *begin, *end;   // [rows] tokens of the chunk that a row sees
  RowState chunk, total;  // of the chunk at hand, and of those before it
};

bool by_tiles(const AttentionArgs& args) { return args.cache.type == KvType::kBF16; }

int64_t tiled_rows(const AttentionArgs& args) { return round_up(flash_rows(args), kTileRows); }

// One worker's, and how many bytes that is; `base` may be null.
Scratch scratch_at(const AttentionArgs& args, std::byte* base, int64_t* bytes) {
  const int64_t dh = bf16_head_dim(args.cache.head_dim), rows = tiled_rows(args);
  int64_t at = 0;
  const auto take = [&](int64_t size) {
    std::byte* result = base == nullptr ? nullptr : base + at;
    at += round_up(size, 64);
    return result;
  };
  const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
  Scratch scratch;
  scratch.parts = take(part_floats<Avx512>(args, dh) * 4);
  scratch.q = reinterpret_cast<uint16_t*>(take(rows * dh * 2));
  scratch.scores = floats(2 * kChunkScores);
  scratch.begin = reinterpret_cast<int64_t*>(take(rows * 8));
  scratch.end = reinterpret_cast<int64_t*>(take(rows * 8));
  scratch.chunk = row_state<Avx512>(floats(row_state_floats<Avx512>(rows, dh)), rows, dh);
  scratch.total = row_state<Avx512>(floats(row_state_floats<Avx512>(rows, dh)), rows, dh);
  *bytes = at;
  return scratch;
}

// Lanes of low, then of high. (C casts: __m512bh converts to nothing else.)
__m512i pair_of_bf16(V low, V high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

// The unit's queries in units of log 2, zero beyond its rows and channels.
void load_queries(const AttentionArgs& args, const AttentionUnit& unit, int64_t rows, int64_t dh,
                  uint16_t* q) {
  const int64_t head_dim = args.cache.head_dim;
  const V scale = _mm512_set1_ps(args.scale * 0x1.715476p+0f);
  const auto put_row = [&](int64_t row, const auto& part) {
    uint16_t* to = q + row / kTileRows * kTileRows * dh + row % kTileRows * 32;
    for (int64_t d = 0; d < dh; d += 32)
      _mm512_storeu_si512(to + d / 32 * kTileNumbers, pair_of_bf16(part(d), part(d + 16)));
  };
  int64_t row = 0;
  for (int64_t query = unit.row_begin; query < unit.row_end; ++query)
    for (int64_t head = unit.head_begin; head < unit.head_end; ++head, ++row) {
      const float* from = args.q + query * args.q_stride + head * head_dim;
      put_row(row, [&](int64_t d) {
        return _mm512_mul_ps(scale, first_numbers(from + d, head_dim - d));
      });
    }
  for (; row < round_up(rows, kTileRows); ++row)
    put_row(row, [](int64_t) { return _mm512_setzero_ps(); });
}

// g++'s intrinsics of tiles do not say that they read and write memory.
void memory_is_written() { __asm__ volatile("" ::: "memory"); }

// Blocks of a chunk that some row of a tile sees.
struct ChunkBlocks {
  const std::byte *k[kBlocksPerChunk], *v[kBlocksPerChunk];
};

// scores of the tiles' rows with blocks [first, last). Here and in sums a tile of keys or values is
// prefetched to L1 a block of tokens before its use.
template <int kRowTiles>
void score(const uint16_t* q, const ChunkBlocks& blocks, int64_t first, int64_t last, int64_t dh,
           float* scores) {
  memory_is_written();
  for (int64_t block = first; block < last; ++block) {
    const std::byte* k = blocks.k[block];
    const std::byte* next = block + 1 < last ? blocks.k[block + 1] : blocks.v[first];
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRowTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t step = 0; step < dh / 32; ++step, k += 1024) {
      _tile_loadd(6, k, 64);
      _tile_loadd(4, q + step * kTileNumbers, 64);
      _tile_dpbf16ps(0, 4, 6);
      prefetch_lines(next + step * 1024, kTileRows);
      _tile_loadd(6, k + dh * 32, 64);
      _tile_dpbf16ps(1, 4, 6);
      prefetch_lines(next + dh * 32 + step * 1024, kTileRows);
      if constexpr (kRowTiles == 2) {
        _tile_loadd(4, q + kTileRows * dh + step * kTileNumbers, 64);
        _tile_dpbf16ps(3, 4, 6);
        _tile_loadd(6, k, 64);
        _tile_dpbf16ps(2, 4, 6);
      }
    }
    float* to = scores + 2 * block * kScorePitch;
    _tile_stored(0, to, 64);
    _tile_stored(1, to + kScorePitch, 64);
    if constexpr (kRowTiles == 2) {
      _tile_stored(2, to + kChunkScores, 64);
      _tile_stored(3, to + kChunkScores + kScorePitch, 64);
    }
  }
  memory_is_written();
}

// 2^x for x ≤ 0, within 0.75 · 10⁻⁴ of it (a minimax fit); anything for others.
V weight_of(V x) {
  const V f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  V p = _mm512_set1_ps(0x1.3f96aap-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.cefc56p-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.644448p-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.fff634p-1f));
  return _mm512_scalef_ps(p, x);
}

// Makes weights of kRows rows' scores; row r sees tokens [begin[r], end[r]) of the chunk, both
// ascending, and gets zeros in the rest of blocks [first, last).
template <int kRows>
void weigh(float* scores, const int64_t* begin, const int64_t* end, int64_t first, int64_t last,
           float* maximum, float* sum) {
  const auto scores_of = [&](int64_t tile, int r) {
    return _mm512_load_ps(scores + tile * kScorePitch + r * 16);
  };
  const auto seen = [&](int64_t tile, int r) {
    const int64_t from = std::max<int64_t>(0, begin[r] - tile * 16), to = end[r] - tile * 16;
    const uint32_t below = to >= 16 ? 0xffffu : to <= 0 ? 0u : (1u << to) - 1;
    return static_cast<__mmask16>(from >= 16 ? 0 : below & ~((1u << from) - 1));
  };
  // Blocks [whole, whole_end) are seen whole by all, those before and behind in part or not.
  const int64_t whole = std::clamp(ceil_div(begin[kRows - 1], kKvBlockTokens), first, last);
  const int64_t whole_end = std::clamp(end[0] / kKvBlockTokens, whole, last);

  V largest[kRows];
  for (V& each : largest) each = _mm512_set1_ps(-__builtin_inff());
  const auto largest_in_part = [&](int64_t from, int64_t to) {
    for (int64_t tile = 2 * from; tile < 2 * to; ++tile)
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        largest[r] = _mm512_mask_max_ps(largest[r], seen(tile, r), largest[r], scores_of(tile, r));
  };
  largest_in_part(first, whole);
  for (int64_t tile = 2 * whole; tile < 2 * whole_end; ++tile)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) largest[r] = _mm512_max_ps(largest[r], scores_of(tile, r));
  largest_in_part(whole_end, last);
  const V maxima = Avx512::combine_rows(largest, [](V a, V b) { return _mm512_max_ps(a, b); });
  _mm512_mask_storeu_ps(maximum, (1u << kRows) - 1, maxima);
  // Finite, as in softmax_rows.
  alignas(64) float shifts[Avx512::kLanes];
  _mm512_store_ps(shifts, _mm512_max_ps(maxima, _mm512_set1_ps(-FLT_MAX)));

  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  V sums[kRows];
  for (V& each : sums) each = _mm512_setzero_ps();
  const auto weight = [&](int64_t tile, int r) {
    return weight_of(_mm512_sub_ps(scores_of(tile, r), _mm512_set1_ps(shifts[r])));
  };
  const auto put = [&](int64_t block, int r, V low, V high) {
    const __m512i pair = pair_of_bf16(low, high);
    _mm512_store_si512(scores + 2 * block * kScorePitch + r * 16, pair);
    sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)pair, (__m512bh)ones);
  };
  const auto put_in_part = [&](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block)
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r)
        put(block, r, _mm512_maskz_mov_ps(seen(2 * block, r), weight(2 * block, r)),
            _mm512_maskz_mov_ps(seen(2 * block + 1, r), weight(2 * block + 1, r)));
  };
  put_in_part(first, whole);
  for (int64_t block = whole; block < whole_end; ++block)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) put(block, r, weight(2 * block, r), weight(2 * block + 1, r));
  put_in_part(whole_end, last);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sum + r * 16, sums[r]);
}

// out = Σ p · v over blocks [first, last).
template <int kRowTiles>
void add_values(const float* scores, const ChunkBlocks& blocks, int64_t first, int64_t last,
                int64_t dh, float* out) {
  memory_is_written();
  for (int64_t d = 0; d < dh; d += 32) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kRowTiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int64_t block = first; block < last; ++block) {
      const std::byte* v = blocks.v[block] + d * 64;
      const float* p = scores + block * 2 * kScorePitch;
      const std::byte* next = block + 1 < last ? blocks.v[block + 1] + d * 64
                              : d + 32 < dh    ? blocks.v[first] + (d + 32) * 64
                                               : blocks.k[first];
      _tile_loadd(6, v, 64);
      _tile_loadd(4, p, 64);
      _tile_dpbf16ps(0, 4, 6);
      prefetch_lines(next, kTileRows);
      _tile_loadd(6, v + 1024, 64);
      _tile_dpbf16ps(1, 4, 6);
      prefetch_lines(next + 1024, kTileRows);
      if constexpr (kRowTiles == 2) {
        _tile_loadd(4, p + kChunkScores, 64);
        _tile_dpbf16ps(3, 4, 6);
        _tile_loadd(6, v, 64);
        _tile_dpbf16ps(2, 4, 6);
      }
    }
    _tile_stored(0, out + d, dh * 4);
    _tile_stored(1, out + d + 16, dh * 4);
    if constexpr (kRowTiles == 2) {
      _tile_stored(2, out + kTileRows * dh + d, dh * 4);
      _tile_stored(3, out + kTileRows * dh + d + 16, dh * 4);
    }
  }
  memory_is_written();
}

// What the unit's rows see of the chunk at `start`.
void find_tokens(const AttentionUnit& unit, int64_t start, int64_t window, Scratch& scratch) {
  const int64_t heads = unit.head_end - unit.head_begin;
  int64_t* begin = scratch.begin;
  int64_t* end = scratch.end;
  for (int64_t query = unit.row_begin; query < unit.row_end; ++query) {
    const int64_t seen = unit.position + query - unit.row_begin + 1 - start;
    for (int64_t head = 0; head < heads; ++head) {
      *begin++ = std::clamp<int64_t>(seen - window, 0, kChunkTokens);
      *end++ = std::clamp<int64_t>(seen, 0, kChunkTokens);
    }
  }
  // Rows that fill up a last tile see what the last one does; nobody reads their results.
  for (; (begin - scratch.begin) % kTileRows != 0; ++begin, ++end)
    *begin = begin[-1], *end = end[-1];
}

// Some of the unit's rows, of kRowTiles tiles, and one chunk.
template <int kRowTiles>
void attend_tiles(const ChunkBlocks& blocks, int64_t row, int64_t count, int64_t tile_rows,
                  int64_t dh, const Scratch& scratch, const RowState& state) {
  // Rows are in order of position: all tokens that any row of the tiles sees.
  const int64_t from = scratch.begin[row], to = scratch.end[row + count - 1];
  if (from >= to) {
    for (int64_t r = row; r < row + count; ++r) state.maximum[r] = -__builtin_inff();
    std::memset(state.sum + row * Avx512::kLanes, 0, count * Avx512::kLanes * sizeof(float));
    std::memset(state.out + row * dh, 0, count * dh * sizeof(float));
    return;
  }
  const int64_t first = from / kKvBlockTokens, last = ceil_div(to, kKvBlockTokens);
  score<kRowTiles>(scratch.q + row * dh, blocks, first, last, dh, scratch.scores);
  const auto weigh_from = [&](int64_t r, auto weigh) {
    weigh(scratch.scores + r / kTileRows * kChunkScores + r % kTileRows * 16,
          scratch.begin + row + r, scratch.end + row + r, first, last, state.maximum + row + r,
          state.sum + (row + r) * Avx512::kLanes);
  };
  if (tile_rows == kTileRows)
    for (int r = 0; r < kRowTiles * kTileRows; r += kWeighedRows)
      weigh_from(r, weigh<kWeighedRows>);
  else
    for (int64_t r = 0; r < count; ++r) weigh_from(r, weigh<1>);
  add_values<kRowTiles>(scratch.scores, blocks, first, last, dh, state.out + row * dh);
}

// The unit's rows of one chunk.
void attend_chunk(const ChunkBlocks& blocks, int64_t rows, int64_t tile_rows, int64_t dh,
                  const Scratch& scratch, const RowState& state) {
  int64_t row = 0;
  for (; rows - row > kTileRows; row += 2 * kTileRows)
    attend_tiles<2>(blocks, row, std::min(2 * kTileRows, rows - row), tile_rows, dh, scratch,
                    state);
  for (; row < rows; row += tile_rows)
    attend_tiles<1>(blocks, row, std::min(tile_rows, rows - row), tile_rows, dh, scratch, state);
}

void attend_unit(const AttentionArgs& args, const AttentionUnit& unit, Scratch scratch) {
  const KvCacheView& cache = args.cache;
  const int64_t dh = bf16_head_dim(cache.head_dim);
  const int64_t rows = (unit.row_end - unit.row_begin) * (unit.head_end - unit.head_begin);
  const int64_t context = unit.position + unit.row_end - unit.row_begin;
  const int64_t window = args.sliding_window > 0 ? args.sliding_window : context;
  const int64_t begin = begin_of_chunks(unit, window), last = end_of_chunks(unit, context);

  load_queries(args, unit, rows, dh, scratch.q);
  // Parts keep kDirectRows rows; others have room for whole tiles.
  const int64_t tile_rows = rows <= kDirectRows ? rows : kTileRows;
  const Tiles tiles(kTileColumns, tile_rows);
  const int64_t first = begin / kChunkTokens * kChunkTokens;
  for (int64_t start = first; start < last; start += kChunkTokens) {
    ChunkBlocks blocks;
    for (int64_t block = 0; block < kBlocksPerChunk; ++block) {
      const int64_t token = start + block * kKvBlockTokens;
      if (token + kKvBlockTokens <= begin || token >= last) continue;
      const Bf16Block at = bf16_block_of(cache, args.batch, unit.sequence, token, unit.kv_head);
      blocks.k[block] = reinterpret_cast<const std::byte*>(at.k);
      blocks.v[block] = reinterpret_cast<const std::byte*>(at.v);
    }
    find_tokens(unit, start, window, scratch);
    // The first chunk added to nothing is itself.
    RowState state = start == first ? scratch.total : scratch.chunk;
    if (unit.slot >= 0)
      state = part_of<Avx512>(args, scratch.parts, unit, start / kChunkTokens, rows, dh);
    attend_chunk(blocks, rows, tile_rows, dh, scratch, state);
    if (unit.slot < 0 && start > first) add_chunk<Avx512>(state, rows, dh, scratch.total);
  }
  if (unit.slot < 0) write_rows<Avx512>(args, unit, rows, dh, scratch.total);
}

}  // namespace

int64_t attention_scratch_bytes(const AttentionArgs& args) {
  if (!by_tiles(args)) return avx512::attention_scratch_bytes(args);
  int64_t bytes;
  scratch_at(args, nullptr, &bytes);
  return bytes;
}

void attention(const AttentionArgs& args, const Worker& worker) {
  if (!by_tiles(args)) return avx512::attention(args, worker);
  int64_t bytes = attention_scratch_bytes(args);
  const Scratch scratch = scratch_at(args, args.scratch + worker.index * bytes, &bytes);
  for_each_unit(args, worker, [&](const AttentionUnit& unit) { attend_unit(args, unit, scratch); });
}

void attention_merge(const AttentionArgs& args, const Worker& worker) {
  if (!by_tiles(args)) return avx512::attention_merge(args, worker);
  int64_t bytes = attention_scratch_bytes(args);
  const Scratch scratch = scratch_at(args, args.scratch + worker.index * bytes, &bytes);
  merge_parts<Avx512>(args, worker, bf16_head_dim(args.cache.head_dim), bytes, scratch.total);
}

}  // namespace whit::cpu::amx
