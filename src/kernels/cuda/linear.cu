#include <cuda_runtime.h>

#include <optional>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_dense.h"
#include "kernels/cuda/linear_layout.h"
#include "kernels/cuda/linear_skinny.h"
#include "kernels/cuda/sm90/linear_narrow.h"
#include "kernels/cuda/sm90/linear_skinny_sm90.h"
#include "kernels/cuda/sm90/linear_wide.h"

namespace whit::cuda {
namespace {

// Where both kernels could: the streaming one up to 8 rows, and up to 16 where K is summed in
// chunks, which cost the other a cluster's exchange. e4m3's sums have other bits in either: those
// are the wide one's wherever it can.
bool streams(const LinearWeight& weight, int64_t m, const DeviceInfo& device) {
  if (!wide_supports(weight, device)) return true;
  if (weight.format == LinearFormat::kW4AFp8) return false;
  return m <= 8 || (m <= 16 && k_chunks(weight.n, weight.k) > 1);
}

bool takes_source(const LinearWeight& weight, int64_t m, RowSource::Kind kind,
                  const DeviceInfo& device) {
  // Two rows of 16 K values fit beside the weights that are on their way.
  constexpr int64_t kWidest = 16384;
  if (weight.format == LinearFormat::kBf16 || weight.format == LinearFormat::kFp8 ||
      !streams(weight, m, device) || m > kMostMadeRows || weight.k % 8 != 0)
    return false;
  if (input_of(weight.format) == LinearInput::kBf16)
    return kind == RowSource::Kind::kRmsNorm && weight.k <= kMostWarpRow;
  return weight.k <= kWidest;
}

// Rows of bf16 are made by the portable kernel alone, and what the other does not activate is
// activated by it. Short rows of activated values its warps make without meeting.
bool needs_portable(const LinearArgs& args, const DeviceInfo& device) {
  return (args.source.kind != RowSource::Kind::kNone &&
          input_of(args.weight.format) == LinearInput::kBf16) ||
         (args.source.kind == RowSource::Kind::kActivated &&
          args.weight.format == LinearFormat::kW8A8 && args.weight.k <= 2 * kMostWarpRow) ||
         (args.activated.y != nullptr && !skinny_sm90_activates(args.weight, device));
}

// Whether a block has no more than two units of 16 rows, of which it is done before the kernel on
// wgmma has begun.
bool is_small(const LinearWeight& weight, const DeviceInfo& device) {
  return weight.n <= int64_t{2} * kUnitRows * device.sms;
}

// Where the kernel on wgmma for few rows is the fastest, as measured: above 8 rows, above 4 where K
// is not summed in chunks, and where activations do not fit beside the streaming kernel's weights;
// of e4m3 at any number of rows, as its bits are the wide one's.
bool narrows(const LinearArgs& args, const DeviceInfo& device) {
  if (!narrow_supports(args, device)) return false;
  if (args.weight.format == LinearFormat::kW4A8 && args.m <= 16 && is_small(args.weight, device) &&
      skinny_sm90_supports(args, device))
    return false;
  if (args.weight.format == LinearFormat::kW4AFp8 || args.m > 8) return true;
  return args.m > kMostMadeRows && ((args.m > 4 && k_chunks(args.weight.n, args.weight.k) == 1) ||
                                    !skinny_sm90_supports(args, device));
}

void require(bool condition, const LinearArgs& args, const char* rule) {
  if (!condition)
    throw Error(ErrorKind::kInvalidArgument, "CUDA linear {} [M {}, N {}, K {}]: {}",
                name(args.weight.format), args.m, args.weight.n, args.weight.k, rule);
}

bool aligned(const void* pointer, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % to == 0;
}

void check_args(const LinearArgs& args, const DeviceInfo& device) {
  require(args.m > 0 && args.m < (int64_t{1} << 20), args, "M is not in 1 … 2^20");
  require(args.weight.data != nullptr && (args.y != nullptr || args.activated.y != nullptr), args,
          "weight or y is null");
  require(aligned(args.weight.data, 256), args, "the weight is not 256-byte aligned");
  require(args.activated.y != nullptr ? args.activated.stride >= args.weight.n / 2
                                      : args.y_stride >= args.weight.n,
          args, "a stride is shorter than its row");
  if (args.source.kind != RowSource::Kind::kNone) {
    require(takes_source(args.weight, args.m, args.source.kind, device), args,
            "its rows must be made before it");
    require(aligned(args.source.x, 16) && aligned(args.source.weight, 16) &&
                args.source.x_stride % 8 == 0 && args.source.x_stride >= args.weight.k,
            args, "rows of its source are not aligned to 16 bytes, or too short");
    return;
  }
  require(args.x != nullptr, args, "x is null");
  require(aligned(args.x, 16) && args.x_stride % 16 == 0, args,
          "rows of x are not aligned to 16 bytes and 16 elements");
  require(args.x_stride >= args.weight.k, args, "a stride is shorter than its row");
  require((args.x_scale == nullptr) == (input_of(args.weight.format) == LinearInput::kBf16), args,
          "x_scale belongs to int8 and e4m3 inputs, and to them alone");
}

}  // namespace

struct LinearRunner::State {
  DeviceInfo device;
  std::optional<DenseLinear> dense;
};

LinearRunner::LinearRunner() : state_(std::make_unique<State>()) {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "current device");
  check(cudaDeviceGetAttribute(&state_->device.sms, cudaDevAttrMultiProcessorCount, device),
        "number of SMs");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "capability");
  state_->device.capability = 10 * major + minor;
  if (major < 8)
    throw Error(ErrorKind::kUnsupported,
                "this GPU has compute capability {}.{}; the kernels need 8.0 (Ampere) or later",
                major, minor);
}

LinearRunner::~LinearRunner() = default;

void LinearRunner::require(LinearFormat format) const {
  const int capability = state_->device.capability;
  if (format == LinearFormat::kFp8 && capability < 90)
    throw Error(ErrorKind::kUnsupported,
                "this GPU has compute capability {}.{}; products of e4m3 by e4m3 with scales of "
                "rows and channels (scheme fp8) need 9.0 (Hopper) or later",
                capability / 10, capability % 10);
}

bool LinearRunner::makes_rows(const LinearWeight& weight, int64_t m, RowSource::Kind kind) const {
  return takes_source(weight, m, kind, state_->device);
}

bool LinearRunner::activates(const LinearWeight& weight, int64_t m) const {
  return makes_rows(weight, m, RowSource::Kind::kRmsNorm) &&
         (skinny_sm90_activates(weight, state_->device) || skinny_activates(weight));
}

void LinearRunner::run(const LinearArgs& args, CUstream_st* stream) {
  check_args(args, state_->device);
  cuda::require(args.activated.y == nullptr ||
                    (args.source.kind != RowSource::Kind::kNone && activates(args.weight, args.m)),
                args, "it does not activate what it makes");
  if (args.weight.format == LinearFormat::kBf16 || args.weight.format == LinearFormat::kFp8) {
    if (!state_->dense) state_->dense.emplace();
    state_->dense->run(args, stream);
  } else if (narrows(args, state_->device)) {
    run_narrow(args, state_->device, stream);
  } else if (!needs_portable(args, state_->device) && skinny_sm90_supports(args, state_->device)) {
    run_skinny_sm90(args, state_->device, stream);
  } else if (streams(args.weight, args.m, state_->device)) {
    run_skinny(args, state_->device, stream);
  } else {
    run_wide(args, state_->device, stream);
  }
}

}  // namespace whit::cuda
