// Keys and values on the GPU (layouts: kernels/cuda/small_ops.h).
#pragma once

#include "engine/kv_cache.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/small_ops.h"

namespace whit {

class CudaKvCache : public DeviceKvCache {
 public:
  CudaKvCache(cuda::Device& device, const Graph& graph, NodeRange range, cuda::KvStorage storage,
              int64_t pages, int64_t page_tokens);
  int64_t bytes() const override;
  cuda::DeviceKv layer(int layer) const;
  int64_t page_tokens() const { return page_tokens_; }
  bool coded() const { return storage_ != cuda::KvStorage::kBf16; }
  // Distinct for every cache that was ever made.
  uint64_t id() const { return id_; }

 private:
  struct Layer {
    cuda::DeviceBuffer k, v, k_scales, v_scales;
    int64_t kv_heads = 0, head_dim = 0;
  };
  cuda::KvStorage storage_;
  int64_t page_tokens_;
  uint64_t id_;
  int first_layer_ = 0;
  std::vector<Layer> layers_;
};

}  // namespace whit
