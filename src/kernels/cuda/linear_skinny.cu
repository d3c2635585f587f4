#include "kernels/cuda/linear_skinny.cuh"
#include "kernels/cuda/linear_skinny.h"

namespace whit::cuda {

bool skinny_activates(const LinearWeight& weight) {
  return weight.k <= kMostWarpRow && weight.k % 8 == 0 && weight.n % (2 * kUnitRows) == 0;
}

void run_skinny(const LinearArgs& args, const DeviceInfo& device, CUstream_st* stream) {
  const LinearWeight& weight = args.weight;
  const bool int4 = weight.format != LinearFormat::kW8A8 && weight.format != LinearFormat::kW8A16;
  SkinnyParams p{};
  p.weight = static_cast<const uint8_t*>(weight.data);
  p.layout = tile_layout(int4 ? 4 : 8, weight.n, weight.k, weight.group_size);
  p.x = static_cast<const uint8_t*>(args.x);
  p.source = args.source;
  p.x_row_bytes = args.x_stride * (input_of(weight.format) == LinearInput::kBf16 ? 2 : 1);
  p.epilogue = epilogue_of(args);
  p.m = static_cast<int>(args.m);
  p.n = static_cast<int>(weight.n);
  p.k = static_cast<int>(weight.k);
  p.units = (p.n + kUnitRows - 1) / kUnitRows;
  p.activated = args.activated;
  const int of_item = p.activated.y != nullptr ? 2 : 1;
  p.units /= of_item;
  p.up_units = p.units;
  p.chunks = k_chunks(weight.n, weight.k);
  p.blocks = std::min(device.sms, p.units);
  // As even as can be: 28 units are two rounds of 14, not 16 and 12.
  const int units = (p.units + p.blocks - 1) / p.blocks, most = kSkinnyWarps / p.chunks / of_item;
  const int rounds = (units + most - 1) / most;
  p.slots = (units + rounds - 1) / rounds * of_item;
  if (weight.format == LinearFormat::kW4A8)
    skinny_w4a8(p, weight.zero_points, stream);
  else if (weight.format == LinearFormat::kW4A8TwoLevel)
    skinny_w4a8_two_level(p, stream);
  else if (weight.format == LinearFormat::kW4A16)
    skinny_w4a16(p, stream);
  else if (weight.format == LinearFormat::kW4AFp8)
    skinny_w4afp8(p, weight.zero_points, stream);
  else
    skinny_w8(p, weight.format, stream);
}

}  // namespace whit::cuda
