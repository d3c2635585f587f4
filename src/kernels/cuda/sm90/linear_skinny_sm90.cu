#include <bit>

#include "kernels/cuda/sm90/linear_skinny_sm90.cuh"
#include "kernels/cuda/sm90/linear_skinny_sm90.h"
#include "kernels/cuda/sm90/shared_memory.h"

namespace whit::cuda {
namespace {

// Of a block's rings together: what hides a loaded memory latency of 0.8 µs at 4.6 TB/s, and more.
constexpr int kLeastRing = 40 * 1024;
// Warps of 16 rows each that a block has rather than half as many of 32: measured.
constexpr int kMostNarrowWarps = 12;

struct Plan {
  int chunks, units, items, blocks, slots, room;
};

Plan plan_of(const LinearArgs& args, const DeviceInfo& device) {
  const int rows = static_cast<int>((args.weight.n + kUnitRows - 1) / kUnitRows);
  const int element = input_of(args.weight.format) == LinearInput::kBf16 ? 2 : 1;
  const int64_t x_bytes = args.m * (args.weight.k * element + kStreamPad);
  Plan plan{};
  plan.chunks = k_chunks(args.weight.n, args.weight.k);
  const bool narrow = (rows + device.sms - 1) / device.sms * plan.chunks <= kMostNarrowWarps;
  plan.units = narrow && args.activated.y == nullptr ? 1 : 2;
  plan.items = (rows + plan.units - 1) / plan.units;
  plan.blocks = std::min(device.sms, plan.items);
  const int items = (plan.items + plan.blocks - 1) / plan.blocks;
  const int most = stream_warps(plan.units) / plan.chunks;
  const int rounds = (items + most - 1) / most;
  plan.slots = (items + rounds - 1) / rounds;
  // Half of an SM is left to other kernels where that is enough.
  plan.room = kHalfSharedBytes - x_bytes >= kLeastRing   ? kHalfSharedBytes
              : kMostSharedBytes - x_bytes >= kLeastRing ? kMostSharedBytes
                                                         : 0;
  return plan;
}

bool whole_groups(const LinearWeight& weight) {
  switch (weight.format) {
    case LinearFormat::kW8A8:
      return weight.k % 128 == 0;
    case LinearFormat::kW4A8:
    case LinearFormat::kW4A8TwoLevel:
    case LinearFormat::kW4A16:
      return weight.k % 128 == 0 && weight.group_size == 128;
    default:
      return false;
  }
}

}  // namespace

bool skinny_sm90_supports(const LinearArgs& args, const DeviceInfo& device) {
  if (device.capability != 90 || args.m > (args.weight.format == LinearFormat::kW8A8 ? 8 : 16) ||
      !whole_groups(args.weight))
    return false;
  const Plan plan = plan_of(args, device);
  // Where K has chunks and activations fill the SM, the portable kernel, which reads them through
  // L1, is as fast or faster.
  return plan.room == kHalfSharedBytes || (plan.room == kMostSharedBytes && plan.chunks == 1);
}

bool skinny_sm90_activates(const LinearWeight& weight, const DeviceInfo& device) {
  return device.capability == 90 && input_of(weight.format) == LinearInput::kInt8 &&
         whole_groups(weight) && weight.n % (2 * kTileRows) == 0 &&
         k_chunks(weight.n, weight.k) == 1;
}

void run_skinny_sm90(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream) {
  const LinearWeight& weight = args.weight;
  const Plan plan = plan_of(args, device);
  StreamParams p{};
  p.weight = static_cast<const uint8_t*>(weight.data);
  p.layout = tile_layout(weight.format == LinearFormat::kW8A8 ? 8 : 4, weight.n, weight.k,
                         weight.group_size);
  p.x = static_cast<const uint8_t*>(args.x);
  p.x_row_bytes = args.x_stride * (input_of(weight.format) == LinearInput::kBf16 ? 2 : 1);
  p.source = args.source;
  p.epilogue = epilogue_of(args);
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(weight.n);
  p.k = static_cast<int>(weight.k);
  p.block_items = plan.items / plan.blocks;
  p.larger_blocks = plan.items % plan.blocks;
  p.chunks_log = std::countr_zero(static_cast<unsigned>(plan.chunks));
  p.slots = plan.slots;
  p.blocks = plan.blocks;
  p.activated = args.activated;
  if (args.activated.y != nullptr) p.up_units = static_cast<int>(weight.n / 2 / kUnitRows);
  if (weight.format == LinearFormat::kW4A8)
    stream_w4a8(p, weight.zero_points, plan.units, plan.room, stream);
  else if (weight.format == LinearFormat::kW4A8TwoLevel)
    stream_w4a8_two_level(p, plan.units, plan.room, stream);
  else if (weight.format == LinearFormat::kW4A16)
    stream_w4a16(p, plan.units, plan.room, stream);
  else
    stream_w8a8(p, plan.units, plan.room, stream);
}

}  // namespace whit::cuda
