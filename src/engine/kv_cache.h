// Keys and values of a range of layers, in pages.
#pragma once

#include <memory>
#include <vector>

#include "graph/graph.h"
#include "ops/kv_format.h"
#include "ops/ops.h"
#include "tensor/tensor.h"

namespace whit {

// Keys and values in a device's memory; only the runner that made it looks inside.
class DeviceKvCache {
 public:
  virtual ~DeviceKvCache() = default;
  virtual int64_t bytes() const = 0;
};

// What a cache of a range of layers holds.
struct KvCacheOptions {
  KvFormat format;
  int64_t pages = 1;
  int64_t page_tokens = 32;  // a multiple of kv_page_multiple(format.type)
  // Sequences that may be in use at once, each with an index of its own in BatchView::tails.
  int64_t tails = 1;
};

// Tokens that a page's number of tokens must be a multiple of.
int64_t kv_page_multiple(KvType type);

class KvCache {
 public:
  // For the attention nodes in `range`.
  KvCache(const Graph& graph, NodeRange range, const KvCacheOptions& options);
  // `pages` sequences of one page each.
  KvCache(const Graph& graph, NodeRange range, const KvFormat& format, int64_t pages,
          int64_t page_tokens)
      : KvCache(graph, range, {format, pages, page_tokens, pages}) {}
  KvCache(const KvFormat& format, int64_t page_tokens, std::shared_ptr<DeviceKvCache> device);
  // Of a cache in host memory.
  KvCacheView layer(int layer);
  // Null where it lies in host memory.
  const std::shared_ptr<DeviceKvCache>& device() const { return device_; }
  int64_t page_tokens() const { return page_tokens_; }
  int64_t bytes() const;  // of the pages: what grows with the context
  int64_t tail_bytes() const;
  // The most of the first `tokens` cached tokens of a sequence that may be kept where what followed
  // is dropped: with tails, whole blocks.
  int64_t keepable(int64_t tokens) const;
  const KvFormat& format() const { return format_; }

 private:
  struct Layer {
    KeyLayout keys = KeyLayout::kToken;
    int64_t k_offset = 0, v_offset = 0;  // in a page
    Buffer k_tails, v_tails;
    int64_t kv_heads = 0, head_dim = 0;
  };
  KvFormat format_;
  int64_t page_tokens_;
  int first_layer_ = 0;
  std::vector<Layer> layers_;
  // [pages][layers: keys, values]: what is used lies together, so that huge pages hold little else,
  // and attention's jumps from page to page need few of the processor's translations.
  Buffer pages_;
  int64_t page_bytes_ = 0;
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
