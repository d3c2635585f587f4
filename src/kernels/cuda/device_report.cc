#include "kernels/cuda/device_report.h"

#include "base/error.h"
#include "base/progress.h"

namespace whit::cuda {
namespace {

constexpr const char* kOffer = "use --backend cpu to run on the CPU";

std::string size(int64_t bytes) { return format_bytes(static_cast<double>(bytes)); }

}  // namespace

void throw_no_gpu(const std::string& reason) {
  throw Error(
      ErrorKind::kUnsupported,
      "no NVIDIA GPU can be used ({}): the CUDA backend needs one of compute capability 8.0 "
      "or later, its driver, and leave to use it (CUDA_VISIBLE_DEVICES, /dev/nvidia*); {}",
      reason, kOffer);
}

void throw_old_driver(int supported, int needed) {
  throw Error(ErrorKind::kUnsupported,
              "the NVIDIA driver is too old: it supports CUDA {}.{}, this program needs {}.{}; "
              "install a newer driver, or {}",
              supported / 1000, supported % 1000 / 10, needed / 1000, needed % 1000 / 10, kOffer);
}

void throw_old_gpu(const std::string& name, int major, int minor) {
  throw Error(ErrorKind::kUnsupported,
              "{} has compute capability {}.{}; the CUDA backend needs 8.0 or later (Ampere, Ada, "
              "Hopper); {}",
              name, major, minor, kOffer);
}

void throw_no_memory(const std::string& name, const std::string& purpose, int64_t bytes,
                     int64_t free, int64_t total) {
  throw Error(ErrorKind::kResource,
              "{}: {} of GPU memory are needed, but only {} of {} are free on {}; end other "
              "programs that use the GPU, shorten the context, take a smaller scheme, or {}",
              purpose, size(bytes), size(free), size(total), name, kOffer);
}

void throw_failure(const std::string& doing, const std::string& problem) {
  throw Error(ErrorKind::kIo, "the GPU failed while {}: {}", doing, problem);
}

}  // namespace whit::cuda
