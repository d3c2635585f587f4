// The device of a program that was built without CUDA: there is none.
#include "kernels/cuda/device.h"

#include "base/error.h"
#include "kernels/cuda/benchmark.h"
#include "kernels/cuda/calibration_ops.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/product_f32.h"
#include "kernels/cuda/small_ops.h"
#include "kernels/cuda/turn.h"

namespace whit::cuda {
namespace {

[[noreturn]] void built_without_cuda() {
  throw Error(ErrorKind::kUnsupported,
              "this program was built without CUDA: use --backend cpu, or build it where the CUDA "
              "toolkit (12.4 or later, nvcc) is installed");
}

}  // namespace

std::unique_ptr<Device> open_device() { built_without_cuda(); }
std::unique_lock<std::mutex> take_turn(CUstream_st*) { built_without_cuda(); }
const SmallOps& small_ops() { built_without_cuda(); }
const CalibrationOps& calibration_ops() { built_without_cuda(); }

struct ProductF32::State {};
ProductF32::ProductF32() { built_without_cuda(); }
ProductF32::~ProductF32() = default;
void ProductF32::run(const ProductArgs&, CUstream_st*) { built_without_cuda(); }

struct LinearRunner::State {};
LinearRunner::LinearRunner() { built_without_cuda(); }
LinearRunner::~LinearRunner() = default;
void LinearRunner::require(LinearFormat) const {}
bool LinearRunner::makes_rows(const LinearWeight&, int64_t, RowSource::Kind) const { return false; }
bool LinearRunner::activates(const LinearWeight&, int64_t) const { return false; }
void LinearRunner::run(const LinearArgs&, CUstream_st*) { built_without_cuda(); }

class LinearBenchmark::Impl {};
LinearBenchmark::LinearBenchmark() { built_without_cuda(); }
LinearBenchmark::~LinearBenchmark() = default;
BenchmarkLimits LinearBenchmark::limits(bool) { built_without_cuda(); }
BenchmarkResult LinearBenchmark::run(const BenchmarkWeight&, int64_t, bool) {
  built_without_cuda();
}
double LinearBenchmark::run_chain(std::span<const BenchmarkWeight>, int64_t) {
  built_without_cuda();
}

}  // namespace whit::cuda
