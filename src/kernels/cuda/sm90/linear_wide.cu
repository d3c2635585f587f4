#include "kernels/cuda/sm90/linear_turns.h"
#include "kernels/cuda/sm90/linear_wide.cuh"
#include "kernels/cuda/sm90/linear_wide.h"

namespace whit::cuda {
namespace {

// Microseconds as measured on an H100, by which the shape that ends first is chosen: of 128 of K,
// and of the rest of a tile (filling the pipeline, storing).
struct TileTimes {
  double step, rest;
  double of(int steps) const { return steps * step + rest; }
};
struct TileShape {
  int tokens;
  struct Times {
    TileTimes whole, half;
  } exact, grouped;  // by how sums are kept
};
constexpr TileShape kTileShapes[] = {{32, {{.23, 2.6}, {.19, 2.6}}, {{.40, 1.2}, {.24, 4.0}}},
                                     {64, {{.27, 2.0}, {.21, 2.2}}, {{.46, 1.2}, {.25, 4.6}}},
                                     {128, {{.34, 3.4}, {.33, 3.8}}, {{.56, 1.2}, {.34, 5.5}}},
                                     {256, {{.57, 5.4}, {.46, 5.0}}, {}}};
constexpr double kExchangeTime = 3.6;  // of a cluster whose blocks share K: start and exchange
// Of linear_turns, measured on an H200: a block's tiles take a step each, and the rest once.
constexpr TileTimes kTurnTimes = {.34, 5.5};

}  // namespace

bool wide_supports(const LinearWeight& weight, const DeviceInfo& device) {
  return device.capability == 90 && (is_8_bits(weight.format) || weight.group_size == 128);
}

void run_wide(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream) {
  const LinearWeight& weight = args.weight;
  const bool int4 = !is_8_bits(weight.format);
  const bool exact =
      weight.format == LinearFormat::kW8A8 || weight.format == LinearFormat::kW4A8TwoLevel;
  WideParams p{};
  p.weight = static_cast<const uint8_t*>(weight.data);
  p.layout = tile_layout(int4 ? 4 : 8, weight.n, weight.k, weight.group_size);
  p.epilogue = epilogue_of(args);
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(weight.n);
  p.steps = static_cast<int>((weight.k + kWideStepK - 1) / kWideStepK);
  p.chunks = k_chunks(weight.n, weight.k);
  p.vectors = p.epilogue.vectors_of_8();
  p.direct = p.vectors && !p.epilogue.y_f32 && p.epilogue.residual == nullptr;
  const int row_tiles = (p.layout.row_blocks + kWideConsumers - 1) / kWideConsumers;
  int tokens = 0;
  double best = 0;
  for (const TileShape& shape : kTileShapes)
    for (const int parts : {1, 2, 4}) {
      // 256 tokens: exact sums, of one block; two chunks a block: room for up to 64.
      if (shape.tokens == 256 && (!exact || parts > 1)) continue;
      if (p.chunks % parts != 0) continue;
      if (!exact && parts > 1 && parts < p.chunks && shape.tokens > 64) continue;
      const int sharers = shape.tokens > 64 && parts == 1 && row_tiles > 1 ? 2 : 1;
      const int token_tiles = (p.m + shape.tokens - 1) / shape.tokens;
      const int row_groups = (row_tiles + sharers - 1) / sharers;
      const int tiles = row_groups * token_tiles;
      const int clusters = blocks_in_clusters(parts * sharers, device.sms) / (parts * sharers);
      // Where the last turn has tiles for half of the SMs at most, all take half a tile.
      const int waves = tiles / clusters, rest = tiles % clusters;
      const bool halves = parts == 1 && rest > 0 && 2 * rest <= clusters;
      const TileShape::Times& times = exact ? shape.exact : shape.grouped;
      const int steps = p.steps / parts;
      const double whole = times.whole.of(steps) + (parts > 1 ? kExchangeTime : 0);
      const double last = rest == 0 ? 0 : halves ? times.half.of(steps) : whole;
      const double cost = waves * whole + last;
      if (tokens == 0 || cost < best) {
        best = cost;
        tokens = shape.tokens;
        p.parts = parts;
        p.sharers = sharers;
        p.token_tiles = token_tiles;
        p.whole_tiles = halves ? tiles - rest : tiles;
        p.tiles = halves ? tiles + rest : tiles;
      }
    }
  // Up to two tiles of tokens what weights wait for decides, not the turns.
  if (weight.format == LinearFormat::kW8A8 && p.direct && row_tiles > 1 && p.m > 2 * kTurnTokens) {
    const int token_tiles = (p.m + kTurnTokens - 1) / kTurnTokens;
    const int tiles = (row_tiles + 1) / 2 * token_tiles;
    const int clusters = blocks_in_clusters(2, device.sms) / 2;
    if (kTurnTimes.of((tiles + clusters - 1) / clusters * p.steps) < best) {
      p.token_tiles = token_tiles;
      p.tiles = tiles;
      return run_turns(args, p, device.sms, stream);
    }
  }
  if (weight.format == LinearFormat::kW4A8)
    wide_w4a8(args, p, tokens, device.sms, stream);
  else if (weight.format == LinearFormat::kW4A8TwoLevel)
    wide_w4a8_two_level(args, p, tokens, device.sms, stream);
  else if (weight.format == LinearFormat::kW4AFp8)
    wide_w4afp8(args, p, tokens, device.sms, stream);
  else if (weight.format == LinearFormat::kW4A16)
    wide_w4a16(args, p, tokens, device.sms, stream);
  else if (weight.format == LinearFormat::kW8A16)
    wide_w8a16(args, p, tokens, device.sms, stream);
  else
    wide_w8a8(args, p, tokens, device.sms, stream);
}

}  // namespace whit::cuda
