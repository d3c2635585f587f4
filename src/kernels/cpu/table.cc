#include "kernels/cpu/table.h"

#include <vector>

#include "kernels/cpu/lay_out.h"
#include "kernels/cpu/linear_rows.h"

namespace whit::cpu {
namespace {

// |Σ code · q| ≤ K · 128 · 127 < 2³¹.
constexpr int64_t kMaxInt8Columns = 132'104;

std::vector<LinearKernel> collect() {
  std::vector<LinearKernel> rows;
  const auto add = [&](std::span<const LinearKernel> more) {
    rows.insert(rows.end(), more.begin(), more.end());
  };
  add({&kAmxLinearW4A16, 1});
  add({&kAmxLinearW8A16, 1});
  add({&kAmxLinearW4A8, 1});
  add({&kAmxLinearW8A8, 1});
  add({&kAmxLinearW4A8TwoLevel, 1});
  add(kAvx512LinearFloat);
  add({&kAvx512LinearW4A16, 1});
  add({&kAvx512LinearW8A16, 1});
  add({&kAvx512LinearW4A8, 1});
  add({&kAvx512LinearW8A8, 1});
  add({&kAvx512LinearW4A8TwoLevel, 1});
  add(kAvx2LinearFloat);
  add({&kAvx2LinearW4A8, 1});
  add({&kAvx2LinearW8A8, 1});
  add({&kAvx2LinearW4A8TwoLevel, 1});
  add({&kAvx2LinearW4A16, 1});
  add({&kAvx2LinearW8A16, 1});
  add(kPortableLinearFloat);
  add(kPortableLinearInt8);
  return rows;
}

std::string_view name(Activation activation) {
  return activation == Activation::kFloat ? "float" : "int8";
}

// True when a kernel of format `kernel` can pack weights of format `weight`.
bool packs(WeightFormat kernel, WeightFormat weight) {
  const bool dense =
      weight == WeightFormat::kF32 || weight == WeightFormat::kF16 || weight == WeightFormat::kBF16;
  return kernel == weight ||
         (dense && (kernel == WeightFormat::kF32 || kernel == WeightFormat::kBF16));
}

}  // namespace

std::span<const LinearKernel> linear_kernels() {
  static const std::vector<LinearKernel> rows = collect();
  return rows;
}

const LinearKernel& linear_kernel(WeightFormat format, Activation activation, Isa isa,
                                  bool two_level) {
  two_level &= activation == Activation::kInt8;
  if (activation == Activation::kFp8) activation = Activation::kFloat;
  for (const LinearKernel& row : linear_kernels())
    if (row.format == format && row.activation == activation && row.isa <= isa &&
        row.two_level == two_level)
      return row;
  throw Error(ErrorKind::kUnsupported, "no CPU linear kernel for {} weights and {} activations",
              name(format), name(activation));
}

PackedWeight lay_out(const LinearKernel& kernel, std::span<const WeightView> parts) {
  if (parts.empty()) throw Error(ErrorKind::kInvalidArgument, "pack_linear: no weights given");
  const bool grouped = kernel.format == WeightFormat::kInt4Group;
  PackedWeight packed;
  packed.kernel = &kernel;
  packed.k = parts[0].k;
  packed.group_size = grouped ? parts[0].group_size : packed.k;
  for (const WeightView& part : parts) {
    if (!packs(kernel.format, part.format))
      throw Error(ErrorKind::kInvalidArgument, "kernel {} packs {} weights, not {}", kernel.name,
                  name(kernel.format), name(part.format));
    if (kernel.two_level && !part.two_level)
      throw Error(ErrorKind::kInvalidArgument, "kernel {} packs weights of two-level scales alone",
                  kernel.name);
    if (part.n < 1 || part.k < 1)
      throw Error(ErrorKind::kInvalidArgument, "kernel {}: a weight of shape [{}, {}] is empty",
                  kernel.name, part.n, part.k);
    if (part.k != packed.k || (grouped && part.group_size != packed.group_size))
      throw Error(
          ErrorKind::kInvalidArgument,
          "kernel {}: stacked weights differ: K = {} in groups of {}, K = {} in groups of {}",
          kernel.name, packed.k, packed.group_size, part.k, part.group_size);
    packed.n += part.n;
  }
  if (kernel.activation == Activation::kInt8 && packed.k > kMaxInt8Columns)
    throw Error(ErrorKind::kUnsupported,
                "kernel {}: K = {} is above {}, where 32-bit sums could overflow", kernel.name,
                packed.k, kMaxInt8Columns);
  if (grouped &&
      (packed.group_size < 1 || (packed.group_size < packed.k && packed.group_size % 32 != 0)))
    throw Error(ErrorKind::kUnsupported,
                "kernel {}: groups of {} along K = {}; a group is a multiple of 32 columns, or all "
                "of them",
                kernel.name, packed.group_size, packed.k);
  if (grouped && packed.group_size > kMostGroupColumns)
    throw Error(ErrorKind::kUnsupported,
                "kernel {}: a group of {} columns is above {}, where 32-bit sums could overflow",
                kernel.name, packed.group_size, kMostGroupColumns);
  packed.payload_bytes = kernel.packed_bytes(packed.n, packed.k, packed.group_size);
  return packed;
}

PackedWeight pack_linear(const LinearKernel& kernel, std::span<const WeightView> parts,
                         ThreadPool& pool) {
  PackedWeight packed = lay_out(kernel, parts);
  packed.data = Buffer(packed.payload_bytes);
  pool.run([&](const Worker& worker) { kernel.pack(parts, packed, worker); });
  return packed;
}

}  // namespace whit::cpu
