// Keys and values of a range of layers, in pages.
#pragma once

#include <memory>
#include <vector>

#include "graph/graph.h"
#include "ops/ops.h"
#include "tensor/tensor.h"

namespace whit {

// Keys and values in a device's memory; only the runner that made it looks inside.
class DeviceKvCache {
 public:
  virtual ~DeviceKvCache() = default;
  virtual int64_t bytes() const = 0;
};

class KvCache {
 public:
  // One K and one V buffer for each attention node in `range`, `pages` pages of `page_tokens` (a
  // multiple of 16).
  KvCache(const Graph& graph, NodeRange range, DType dtype, int64_t pages, int64_t page_tokens);
  KvCache(DType dtype, int64_t page_tokens, std::shared_ptr<DeviceKvCache> device);
  // Of a cache in host memory.
  KvCacheView layer(int layer);
  // Null where it lies in host memory.
  const std::shared_ptr<DeviceKvCache>& device() const { return device_; }
  int64_t page_tokens() const { return page_tokens_; }
  int64_t bytes() const;

 private:
  struct Layer {
    Buffer k, v;
    int64_t kv_heads = 0, head_dim = 0;
  };
  DType dtype_;
  int64_t page_tokens_;
  int first_layer_ = 0;
  std::vector<Layer> layers_;
  std::shared_ptr<DeviceKvCache> device_;
};

// The metadata of steps over sequences that each own one contiguous page: sequence b lives in page
// b.
class ContiguousBatch {
 public:
  // starts[b] tokens of sequence b are cached already; counts[b] follow in this step.
  ContiguousBatch(std::span<const int64_t> starts, std::span<const int64_t> counts,
                  int64_t page_tokens);
  BatchView view() const;

 private:
  std::vector<int32_t> positions_, query_start_, context_len_, block_table_, slots_;
};

}  // namespace whit
