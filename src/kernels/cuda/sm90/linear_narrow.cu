#include <bit>

#include "kernels/cuda/sm90/linear_narrow.cuh"
#include "kernels/cuda/sm90/linear_narrow.h"

namespace whit::cuda {

bool narrow_supports(const LinearArgs& args, const DeviceInfo& device) {
  const int most = args.weight.format == LinearFormat::kW4A16 ? 32 : 64;
  return device.capability == 90 && args.m <= most && !is_8_bits(args.weight.format) &&
         args.weight.group_size == 128 && args.source.kind == RowSource::Kind::kNone;
}

void run_narrow(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream) {
  const LinearWeight& weight = args.weight;
  const int units = static_cast<int>((weight.n + kUnitRows - 1) / kUnitRows);
  const int chunks = k_chunks(weight.n, weight.k);
  NarrowParams p{};
  p.weight = static_cast<const uint8_t*>(weight.data);
  p.layout = tile_layout(4, weight.n, weight.k, weight.group_size);
  p.epilogue = epilogue_of(args);
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(weight.n);
  const int element = input_of(weight.format) == LinearInput::kBf16 ? 2 : 1;
  p.x = static_cast<const uint8_t*>(args.x);
  p.x_row_bytes = args.x_stride * element;
  p.k_bytes = static_cast<int>(weight.k) * element;
  p.steps = p.layout.tiles;
  p.chunks_log = std::countr_zero(static_cast<unsigned>(chunks));
  p.blocks = std::min(device.sms, units);
  p.block_units = units / p.blocks;
  p.larger_blocks = units % p.blocks;
  // As even as can be: 28 units are two rounds of 14, not 16 and 12.
  const int most = (units + p.blocks - 1) / p.blocks, most_slots = kNarrowWarps / chunks;
  const int rounds = (most + most_slots - 1) / most_slots;
  p.slots = (most + rounds - 1) / rounds;
  if (weight.format == LinearFormat::kW4A8)
    narrow_w4a8(args, p, stream);
  else if (weight.format == LinearFormat::kW4A8TwoLevel)
    narrow_w4a8_two_level(args, p, stream);
  else if (weight.format == LinearFormat::kW4AFp8)
    narrow_w4afp8(args, p, stream);
  else
    narrow_w4a16(args, p, stream);
}

}  // namespace whit::cuda
