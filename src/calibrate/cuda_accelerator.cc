// The Accelerator of an NVIDIA GPU.
#include "calibrate/cuda_group_errors.h"
#include "calibrate/cuda_layer_pass.h"

namespace whit {
namespace {

class CudaAccelerator : public Accelerator {
 public:
  explicit CudaAccelerator(ThreadPool& pool)
      : device_(cuda::open_device()), memory_(*device_, pool) {}

  std::string description() const override { return device_->name(); }
  int64_t peak_bytes() const override { return memory_.peak_bytes(); }
  std::unique_ptr<LayerPass> layer_pass(const Graph& graph, NodeRange range,
                                        const WeightProvider& weights, const RopeTables& rope,
                                        const LayerPassOptions& options) override {
    return cuda_layer_pass(memory_, product_, graph, range, weights, rope, options);
  }
  std::unique_ptr<GroupErrors> group_errors(const GroupErrorsInput& input) override {
    return cuda_group_errors(memory_, product_, input);
  }

 private:
  std::unique_ptr<cuda::Device> device_;
  CudaMemory memory_;
  cuda::ProductF32 product_;
};

}  // namespace

std::unique_ptr<Accelerator> open_cuda_accelerator(ThreadPool& pool) {
  return std::make_unique<CudaAccelerator>(pool);
}

}  // namespace whit
