#include "engine/cuda_kv_cache.h"

#include <atomic>

#include "base/checked.h"

namespace whit {
namespace {

uint64_t next_id() {
  static std::atomic<uint64_t> count{0};
  return ++count;
}

}  // namespace

CudaKvCache::CudaKvCache(cuda::Device& device, const Graph& graph, NodeRange range,
                         cuda::KvStorage storage, int64_t pages, int64_t page_tokens)
    : storage_(storage), page_tokens_(page_tokens), id_(next_id()) {
  const bool coded = storage != cuda::KvStorage::kBf16;
  const char* purpose = "the cache of keys and values";
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op != Op::kAttention) continue;
    if (layers_.empty()) first_layer_ = node.layer;
    const int64_t width = graph.value(node.inputs[1]).width, kv_heads = width / node.head_dim;
    const uint64_t tokens = checked_mul(pages, page_tokens, "KV cache");
    const auto bytes =
        static_cast<int64_t>(checked_mul(tokens, width * (coded ? 1 : 2), "KV cache"));
    Layer layer{.k = cuda::DeviceBuffer(device, bytes, purpose),
                .v = cuda::DeviceBuffer(device, bytes, purpose),
                .k_scales = {},
                .v_scales = {},
                .kv_heads = kv_heads,
                .head_dim = node.head_dim};
    if (coded) {
      const auto scale_bytes = static_cast<int64_t>(checked_mul(tokens, kv_heads * 4, "KV cache"));
      layer.k_scales = cuda::DeviceBuffer(device, scale_bytes, purpose);
      layer.v_scales = cuda::DeviceBuffer(device, scale_bytes, purpose);
    }
    layers_.push_back(std::move(layer));
  }
}

int64_t CudaKvCache::bytes() const {
  int64_t total = 0;
  for (const Layer& layer : layers_)
    total += layer.k.bytes() + layer.v.bytes() + layer.k_scales.bytes() + layer.v_scales.bytes();
  return total;
}

cuda::DeviceKv CudaKvCache::layer(int layer) const {
  const Layer& found = layers_.at(layer - first_layer_);
  return {.storage = storage_,
          .k = found.k.as<void>(),
          .v = found.v.as<void>(),
          .k_scales = found.k_scales.as<float>(),
          .v_scales = found.v_scales.as<float>(),
          .page_tokens = page_tokens_,
          .kv_heads = found.kv_heads,
          .head_dim = found.head_dim};
}

}  // namespace whit
