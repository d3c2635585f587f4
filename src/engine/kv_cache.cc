#include "engine/kv_cache.h"

#include "base/checked.h"

namespace whit {

namespace {

struct LayerShape {
  KeyLayout keys;
  int64_t kv_heads, head_dim;
};

LayerShape shape_of(const Graph& graph, const Node& node, const KvFormat& format) {
  return {format.key_layout(node.layer), graph.value(node.inputs[1]).width / node.head_dim,
          node.head_dim};
}

// Bytes of the keys, or values, of one page.
int64_t part_bytes(const LayerShape& shape, KvType type, int64_t page_tokens, bool keys) {
  int64_t bytes;
  if (has_blocks(type)) {
    const int64_t block = keys ? key_block_bytes(type, shape.keys, shape.head_dim)
                               : value_block_bytes(type, shape.head_dim);
    bytes = page_tokens / kKvBlockTokens * block;
  } else {
    bytes = page_tokens * shape.head_dim * static_cast<int64_t>(sizeof(float));
  }
  return static_cast<int64_t>(checked_mul(bytes, shape.kv_heads, "KV cache"));
}

}  // namespace

int64_t kv_page_multiple(KvType type) { return has_blocks(type) ? kKvBlockTokens : 16; }

KvCache::KvCache(const Graph& graph, NodeRange range, const KvCacheOptions& options)
    : format_(options.format), page_tokens_(options.page_tokens) {
  if (format_.type == KvType::kFp8)
    throw Error(ErrorKind::kUnsupported,
                "keys and values in fp8 need --backend cuda; on a CPU choose auto, f32, f16, bf16, "
                "int8 or int4");
  if (page_tokens_ % kv_page_multiple(format_.type) != 0)
    throw Error(ErrorKind::kInvalidArgument,
                "{} tokens a page; {} keys and values need a multiple of {}", page_tokens_,
                name(format_.type), kv_page_multiple(format_.type));
  const auto add = [&](int64_t bytes) {
    const int64_t offset = page_bytes_;
    page_bytes_ += round_up(bytes, 64);
    return offset;
  };
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op != Op::kAttention) continue;
    if (layers_.empty()) first_layer_ = node.layer;
    const LayerShape shape = shape_of(graph, node, format_);
    Layer layer{.keys = shape.keys,
                .k_offset = add(part_bytes(shape, format_.type, page_tokens_, true)),
                .v_offset = add(part_bytes(shape, format_.type, page_tokens_, false)),
                .k_tails = {},
                .v_tails = {},
                .kv_heads = shape.kv_heads,
                .head_dim = shape.head_dim};
    if (kv_has_tails(format_.type, shape.keys)) {
      const auto bytes = static_cast<int64_t>(checked_mul(
          options.tails * shape.kv_heads,
          kKvTailTokens * shape.head_dim * static_cast<int64_t>(sizeof(uint16_t)), "KV cache"));
      layer.k_tails = Buffer(bytes);
      layer.v_tails = Buffer(bytes);
    }
    layers_.push_back(std::move(layer));
  }
  pages_ = Buffer(static_cast<int64_t>(checked_mul(page_bytes_, options.pages, "KV cache")));
}

KvCache::KvCache(const KvFormat& format, int64_t page_tokens, std::shared_ptr<DeviceKvCache> device)
    : format_(format), page_tokens_(page_tokens), device_(std::move(device)) {}

KvCacheView KvCache::layer(int layer) {
  Layer& found = layers_.at(layer - first_layer_);
  return {.type = format_.type,
          .key_layout = found.keys,
          .k = pages_.as<std::byte>() + found.k_offset,
          .v = pages_.as<std::byte>() + found.v_offset,
          .k_tails = found.k_tails.as<uint16_t>(),
          .v_tails = found.v_tails.as<uint16_t>(),
          .k_page_bytes = page_bytes_,
          .v_page_bytes = page_bytes_,
          .page_tokens = page_tokens_,
          .kv_heads = found.kv_heads,
          .head_dim = found.head_dim};
}

int64_t KvCache::bytes() const { return device_ ? device_->bytes() : pages_.bytes(); }

int64_t KvCache::tail_bytes() const {
  int64_t total = 0;
  for (const Layer& layer : layers_) total += layer.k_tails.bytes() + layer.v_tails.bytes();
  return total;
}

int64_t KvCache::keepable(int64_t tokens) const {
  return tail_bytes() == 0 ? tokens : tokens / kKvBlockTokens * kKvBlockTokens;
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
    block_table_.push_back(static_cast<int32_t>(b));  // and the index of its tail
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
          .slots = slots_.data(),
          .tails = block_table_.data()};
}

}  // namespace whit
