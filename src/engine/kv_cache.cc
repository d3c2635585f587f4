#include "engine/kv_cache.h"

#include "base/checked.h"

namespace whit {

KvCache::KvCache(const Graph& graph, NodeRange range, DType dtype, int64_t pages,
                 int64_t page_tokens)
    : dtype_(dtype), page_tokens_(page_tokens) {
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op != Op::kAttention) continue;
    if (layers_.empty()) first_layer_ = node.layer;
    const int64_t width = graph.value(node.inputs[1]).width;
    const int64_t bytes = static_cast<int64_t>(checked_mul(
        checked_mul(pages, page_tokens, "KV cache"), width * size_of(dtype), "KV cache"));
    layers_.push_back({Buffer(bytes), Buffer(bytes), width / node.head_dim, node.head_dim});
  }
}

KvCache::KvCache(DType dtype, int64_t page_tokens, std::shared_ptr<DeviceKvCache> device)
    : dtype_(dtype), page_tokens_(page_tokens), device_(std::move(device)) {}

KvCacheView KvCache::layer(int layer) {
  Layer& found = layers_.at(layer - first_layer_);
  return {.dtype = dtype_,
          .k = found.k.as<void>(),
          .v = found.v.as<void>(),
          .page_tokens = page_tokens_,
          .kv_heads = found.kv_heads,
          .head_dim = found.head_dim};
}

int64_t KvCache::bytes() const {
  int64_t total = device_ ? device_->bytes() : 0;
  for (const Layer& layer : layers_) total += layer.k.bytes() + layer.v.bytes();
  return total;
}

ContiguousBatch::ContiguousBatch(std::span<const int64_t> starts, std::span<const int64_t> counts,
                                 int64_t page_tokens) {
  query_start_.push_back(0);
  for (size_t b = 0; b < starts.size(); ++b) {
    for (int64_t i = 0; i < counts[b]; ++i) {
      const int64_t position = starts[b] + i;
      positions_.push_back(static_cast<int32_t>(position));
      slots_.push_back(static_cast<int32_t>(static_cast<int64_t>(b) * page_tokens + position));
    }
    query_start_.push_back(static_cast<int32_t>(positions_.size()));
    context_len_.push_back(static_cast<int32_t>(starts[b] + counts[b]));
    block_table_.push_back(static_cast<int32_t>(b));
  }
}

BatchView ContiguousBatch::view() const {
  return {.t = static_cast<int64_t>(positions_.size()),
          .b = static_cast<int64_t>(context_len_.size()),
          .positions = positions_.data(),
          .query_start = query_start_.data(),
          .context_len = context_len_.data(),
          .block_table = block_table_.data(),
          .max_blocks = 1,
          .slots = slots_.data()};
}

}  // namespace whit
