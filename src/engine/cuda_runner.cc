// The CUDA backend: body and head as two programs, a step's metadata in one page-locked block, and
// graphs of decoding steps.
//
// A step in which every sequence has one token is run from a graph, recorded for its bucket: so
// many sequences (padded with rows that belong to none) and so many chunks of context. Metadata,
// body and, where tokens are asked for, head, argmax or sampling and their way back are in it.
// step() only writes the metadata down; what is asked for next decides which graph runs, so that a
// token costs one launch and one wait.
#include <cstring>
#include <functional>
#include <map>

#include "engine/cuda_program.h"
#include "engine/runner.h"
#include "kernels/cuda/turn.h"

namespace whit {
namespace {

using cuda::Device;
using cuda::DeviceBuffer;
using cuda::HostBuffer;

// Sequences of a recorded graph: exactly up to 4, then padded by at most a third, from 8 on by less
// than 8 rows.
int64_t sequence_bucket(int64_t sequences) {
  if (sequences <= 4) return sequences;
  return sequences <= 8 ? round_up(sequences, 2) : round_up(sequences, 8);
}

// Chunks of a recorded graph: blocks past the context end at once, but thousands of them cost
// microseconds.
int64_t chunk_bucket(int64_t chunks) {
  int64_t bucket = 4;
  while (bucket < chunks) bucket *= 2;
  return bucket;
}

// Arrays of a step, one after the other in host and device memory alike.
class StepLayout {
 public:
  int64_t add(int64_t count) {
    const int64_t at = size_;
    size_ += round_up(count, 4);
    return at;
  }
  int64_t bytes() const { return size_ * 4; }

 private:
  int64_t size_ = 0;
};

struct StepShape {
  int64_t t = 0, b = 0;  // rows and sequences, padding included
  int64_t max_blocks = 0;
  int64_t tile_count = 0;
  auto operator<=>(const StepShape&) const = default;
};

struct StepArrays {
  explicit StepArrays(const StepShape& shape) {
    StepLayout layout;
    ids = layout.add(shape.t);
    positions = layout.add(shape.t);
    slots = layout.add(shape.t);
    query_start = layout.add(shape.b + 1);
    context_len = layout.add(shape.b);
    block_table = layout.add(shape.b * shape.max_blocks);
    tiles = layout.add(2 * shape.tile_count);
    widened_first = layout.add(shape.b);
    bytes = layout.bytes();
  }
  int64_t ids, positions, slots, query_start, context_len, block_table, tiles, widened_first, bytes;
};

// What rows are drawn by, on its way to the device, and the tokens on their way back.
struct CudaSampling {
  CudaSampling(Device& device, int64_t max_rows)
      : draws(device, max_rows * static_cast<int64_t>(sizeof(cuda::SampleDraw)), "sampling"),
        tokens(device, max_rows * 4, "sampling"),
        host_draws(device, draws.bytes()),
        host_tokens(device, tokens.bytes()) {}

  // Nothing of an earlier call is on its way. `grow` is called before device memory is replaced.
  void upload(Device& device, std::span<const RowDraw> rows, int64_t vocab,
              const std::function<void()>& grow) {
    int64_t change_count = 0, masks = 0;
    for (const RowDraw& row : rows) {
      change_count += std::ssize(row.changes);
      masks += row.allowed.empty() ? 0 : 1;
    }
    const int64_t mask_bytes = ceil_div(vocab, 64) * 8;
    reserve(device, changes, host_changes, change_count * static_cast<int64_t>(sizeof(LogitChange)),
            grow);
    if (unchanged.bytes() < change_count * 4) {
      grow();
      unchanged = DeviceBuffer(device, 2 * change_count * 4, "sampling");
    }
    reserve(device, allowed, host_allowed, masks * mask_bytes, grow);

    // Rows that fill up a recorded step take their likeliest token.
    auto* to = host_draws.as<cuda::SampleDraw>();
    std::fill_n(to, draws.bytes() / static_cast<int64_t>(sizeof(cuda::SampleDraw)),
                cuda::SampleDraw{});
    int32_t change = 0, mask = 0;
    for (const RowDraw& row : rows) {
      to->random = row.random;
      to->inverse_temperature = row.temperature > 0 ? 1.0f / row.temperature : 0.0f;
      to->top_p = row.top_p;
      to->min_p = row.min_p;
      to->top_k = row.top_k;
      to->first_change = change;
      to->change_count = static_cast<int32_t>(row.changes.size());
      std::copy(row.changes.begin(), row.changes.end(), host_changes.as<LogitChange>() + change);
      change += to->change_count;
      if (!row.allowed.empty()) {
        WHIT_DCHECK(std::ssize(row.allowed) * 8 == mask_bytes);
        to->allowed = mask;
        std::memcpy(host_allowed.as<std::byte>() + mask++ * mask_bytes, row.allowed.data(),
                    static_cast<size_t>(mask_bytes));
      }
      ++to;
    }
    device.upload(draws.as<void>(), host_draws.as<void>(), draws.bytes());
    if (change > 0)
      device.upload(changes.as<void>(), host_changes.as<void>(),
                    change * static_cast<int64_t>(sizeof(LogitChange)));
    if (mask > 0) device.upload(allowed.as<void>(), host_allowed.as<void>(), mask * mask_bytes);
  }

  DeviceBuffer draws, changes, unchanged, allowed, tokens;
  HostBuffer host_draws, host_changes, host_allowed, host_tokens;

 private:
  static void reserve(Device& device, DeviceBuffer& buffer, HostBuffer& host, int64_t bytes,
                      const std::function<void()>& grow) {
    if (buffer.bytes() >= bytes) return;
    grow();
    buffer = DeviceBuffer();
    buffer = DeviceBuffer(device, 2 * bytes, "sampling");
    host = HostBuffer(device, 2 * bytes);
  }
};

class CudaRunner : public ModelRunner {
 public:
  CudaRunner(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
             const ExecutorOptions& options, ThreadPool& pool)
      : graph_(graph),
        vocab_(config.vocab_size),
        width_(config.hidden_size),
        record_graphs_(options.record_graphs),
        device_(cuda::open_device()),
        rope_(rope_tables(config, options.max_context)),
        rows_(*device_, graph, std::max(options.max_tokens, options.max_logit_rows)),
        body_(*device_, linears_, rows_, graph, graph.body(), weights, rope_, pool),
        head_(*device_, linears_, rows_, graph, graph.head(), weights, rope_, pool),
        logits_(*device_, options.max_logit_rows * vocab_ * 4, "the logits"),
        best_keys_(*device_, options.max_logit_rows * 12, "the likeliest tokens"),
        logit_rows_(*device_, options.max_logit_rows * 4, "the rows of logits"),
        sampling_(*device_, options.max_logit_rows),
        host_keys_(*device_, options.max_logit_rows * 8),
        host_logit_rows_(*device_, options.max_logit_rows * 4) {
    rope_ = {};
    device_->fill_zero(best_keys_.as<void>(), best_keys_.bytes());
    for (const Node& node : graph.nodes()) {
      if (node.op != Op::kAttention) continue;
      const int64_t kv_heads = graph.value(node.inputs[1]).width / node.head_dim;
      kv_heads_ = std::max(kv_heads_, kv_heads);
      group_ = std::max(group_, node.heads / kv_heads);
      head_dim_ = std::max(head_dim_, node.head_dim);
      if (node.sliding_window == 0) full_attention_ = true;
      window_ = std::max(window_, node.sliding_window);
    }
    device_->wait();
  }

  void step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache) override {
    const auto turn = cuda::take_turn(device_->stream());
    flush();
    // The metadata of the step before may still be on its way.
    settle();
    pending_cache_ = cache.device();
    cache_ = static_cast<const CudaKvCache*>(cache.device().get());
    prepare(ids, batch);
    pending_ = true;
    t_ = batch.t;
    if (!recordable_) flush();
  }

  const float* hidden() override {
    const auto turn = cuda::take_turn(device_->stream());
    flush();
    reserve_host(host_hidden_, t_ * width_ * 4);
    device_->download(host_hidden_.as<void>(), rows_.hidden.as<void>(), t_ * width_ * 4);
    settle(true);
    return host_hidden_.as<float>();
  }

  const float* logits(std::span<const int32_t> rows) override {
    const auto turn = cuda::take_turn(device_->stream());
    flush();
    head(rows);
    const auto bytes = static_cast<int64_t>(rows.size()) * vocab_ * 4;
    reserve_host(host_logits_, bytes);
    device_->download(host_logits_.as<void>(), logits_.as<void>(), bytes);
    settle(true);
    return host_logits_.as<float>();
  }

  void argmax(std::span<const int32_t> rows, std::span<int32_t> ids) override {
    finish_step(rows, Ending::kArgmax);
    for (size_t i = 0; i < rows.size(); ++i) {
      const uint64_t key = host_keys_.as<uint64_t>()[i];
      if (!cuda::argmax_finite(key))
        throw Error(
            ErrorKind::kInvalidData,
            "every logit is NaN or −∞: the weights are damaged, or a kernel is wrong on this "
            "GPU; fetch the model again, and try --backend cpu");
      ids[i] = cuda::argmax_token(key);
    }
  }

  bool samples() const override { return vocab_ < cuda::kMaxSampledVocab; }

  void sample(std::span<const int32_t> rows, std::span<const RowDraw> draws,
              std::span<int32_t> ids) override {
    sampling_.upload(*device_, draws, vocab_, [&] {
      settle();
      graphs_.clear();
    });
    finish_step(rows, Ending::kSample);
    std::copy_n(sampling_.host_tokens.as<int32_t>(), rows.size(), ids.begin());
  }

  KvCache make_cache(const KvCacheOptions& options) const override {
    const KvType type = options.format.type;
    if (type == KvType::kInt4)
      throw Error(
          ErrorKind::kUnsupported,
          "keys and values in int4 run on the CPU; on a GPU choose auto, bf16, int8 or fp8");
    // Keys and values of a token share a scale for each head, whatever layout the CPU would choose.
    const KvType kept = type == KvType::kF32 ? KvType::kF16 : type;
    const cuda::KvStorage storage = kept == KvType::kInt8  ? cuda::KvStorage::kInt8
                                    : kept == KvType::kFp8 ? cuda::KvStorage::kFp8
                                                           : cuda::KvStorage::kBf16;
    return KvCache(kept, options.page_tokens,
                   std::make_shared<CudaKvCache>(*device_, graph_, graph_.body(), storage,
                                                 options.pages, options.page_tokens));
  }

  int64_t weight_bytes() const override { return body_.weight_bytes() + head_.weight_bytes(); }

  std::vector<Program::StepInfo> describe() const override {
    std::vector<Program::StepInfo> steps = body_.describe();
    steps.insert(steps.end(), head_.describe().begin(), head_.describe().end());
    return steps;
  }

 private:
  enum class Ending : uint8_t { kBody, kArgmax, kSample };
  struct GraphKey {
    StepShape shape;
    int64_t chunks;
    uint64_t cache;
    Ending ending;
    auto operator<=>(const GraphKey&) const = default;
  };

  // Head and ending for `rows` of the step, with the step itself where it is still to be run and
  // these are all of its rows.
  void finish_step(std::span<const int32_t> rows, Ending ending) {
    auto turn = cuda::take_turn(device_->stream());
    bool identity = static_cast<int64_t>(rows.size()) == t_;
    for (size_t i = 0; i < rows.size() && identity; ++i)
      identity = rows[i] == static_cast<int32_t>(i);
    const bool together =
        pending_ && !pending_cache_.expired() && identity && shape_.t * 8 <= host_keys_.bytes();
    if (together) {
      run_recorded(ending);
      pending_ = false;
    } else {
      flush();
      head(rows);
      enqueue_ending(static_cast<int64_t>(rows.size()), ending);
    }
    turn.unlock();
    settle(true);
  }

  // Waits for the device where something was enqueued since it was last waited for, or `always`.
  void settle(bool always = false) {
    if (busy_ || always) device_->wait();
    busy_ = false;
  }

  void reserve_host(HostBuffer& buffer, int64_t bytes) {
    if (buffer.bytes() >= bytes) return;
    settle();
    buffer = HostBuffer(*device_, bytes);
  }

  // Writes the step's metadata into page-locked memory.
  void prepare(std::span<const int32_t> ids, const BatchView& batch) {
    const int64_t page_tokens = cache_->page_tokens();
    int64_t longest = 1, chunks = 0;
    std::vector<int32_t>& tiles = tile_list_;
    tiles.clear();
    widened_first_.assign(batch.b, -1);
    widened_chunks_ = widened_most_ = 0;
    recordable_ = batch.t == batch.b && batch.t > 0;
    for (int64_t b = 0; b < batch.b; ++b) {
      const int64_t tokens = batch.query_start[b + 1] - batch.query_start[b];
      const int64_t context = batch.context_len[b], rows = tokens * group_;
      recordable_ = recordable_ && tokens == 1;
      if (tokens == 0) continue;
      longest = std::max(longest, context);
      if (rows <= cuda::kDecodeRows) {
        chunks = std::max(chunks, ceil_div(context, cuda::kChunk));
      } else {
        const int64_t own = ceil_div(context, cuda::kChunk);
        widened_first_[b] = static_cast<int32_t>(widened_chunks_);
        widened_chunks_ += own;
        widened_most_ = std::max(widened_most_, own);
        for (int64_t row = 0; row < rows; row += cuda::kPrefillRows) {
          tiles.push_back(static_cast<int32_t>(b));
          tiles.push_back(static_cast<int32_t>(row));
        }
      }
    }
    shape_ = {.t = batch.t,
              .b = batch.b,
              .max_blocks = ceil_div(longest, page_tokens),
              .tile_count = static_cast<int64_t>(tiles.size()) / 2};
    chunks_ = chunks;
    if (recordable_) {
      const int64_t padded = sequence_bucket(batch.b);
      if (padded * width_ * 4 <= rows_.hidden.bytes()) shape_.t = shape_.b = padded;
      chunks_ = chunk_bucket(chunks);
      shape_.max_blocks = ceil_div(chunks_ * cuda::kChunk, page_tokens);
    }
    reserve_partials();
    reserve_widened();

    const StepArrays arrays(shape_);
    if (metadata_.bytes() < arrays.bytes) {
      settle();
      graphs_.clear();
      metadata_ = DeviceBuffer(*device_, 2 * arrays.bytes, "a step's metadata");
      host_metadata_ = HostBuffer(*device_, 2 * arrays.bytes);
    }
    auto* host = host_metadata_.as<int32_t>();
    std::memset(host, 0, arrays.bytes);
    std::copy(ids.begin(), ids.end(), host + arrays.ids);
    std::copy_n(batch.positions, batch.t, host + arrays.positions);
    std::copy_n(batch.slots, batch.t, host + arrays.slots);
    std::fill(host + arrays.slots + batch.t, host + arrays.slots + shape_.t, -1);
    std::copy_n(batch.query_start, batch.b + 1, host + arrays.query_start);
    std::fill(host + arrays.query_start + batch.b + 1, host + arrays.query_start + shape_.b + 1,
              static_cast<int32_t>(batch.t));
    std::copy_n(batch.context_len, batch.b, host + arrays.context_len);
    for (int64_t b = 0; b < batch.b; ++b)
      std::copy_n(batch.block_table + b * batch.max_blocks,
                  std::min(batch.max_blocks, shape_.max_blocks),
                  host + arrays.block_table + b * shape_.max_blocks);
    std::copy(tiles.begin(), tiles.end(), host + arrays.tiles);
    std::copy(widened_first_.begin(), widened_first_.end(), host + arrays.widened_first);
    std::fill(host + arrays.widened_first + batch.b, host + arrays.widened_first + shape_.b, -1);
  }

  // Room for the step's prompts as bf16, where the cache is of 8 bits and they take no more than
  // kMostWidened.
  void reserve_widened() {
    if (!cache_->coded() || !device_->hopper()) widened_chunks_ = 0;
    const int64_t bytes = cuda::attention_widened_bytes(widened_chunks_, kv_heads_, head_dim_);
    if (bytes > kMostWidened) widened_chunks_ = 0;
    if (widened_chunks_ == 0 || widened_.bytes() >= bytes) return;
    settle();
    widened_ = DeviceBuffer();
    try {
      widened_ = DeviceBuffer(*device_, bytes, "attention");
    } catch (const Error&) {
      widened_chunks_ = 0;  // no memory is left for it
    }
  }

  void reserve_partials() {
    const int64_t bytes =
        cuda::attention_partial_bytes(shape_.b, kv_heads_, attention_chunks(), head_dim_);
    const int64_t counter_bytes = shape_.b * kv_heads_ * 4;
    if (partials_.bytes() >= bytes && counters_.bytes() >= counter_bytes) return;
    settle();
    graphs_.clear();
    if (partials_.bytes() < bytes) {
      partials_ = DeviceBuffer();
      partials_ = DeviceBuffer(*device_, bytes, "attention");
    }
    if (counters_.bytes() < counter_bytes) {
      counters_ = DeviceBuffer(*device_, counter_bytes, "attention");
      device_->fill_zero(counters_.as<void>(), counter_bytes);
    }
  }

  // Of any layer.
  int64_t attention_chunks() const { return full_attention_ ? chunks_ : window_chunks(window_); }
  int64_t window_chunks(int64_t window) const {
    if (window == 0) return chunks_;
    // A window over decoding rows spans at most so many chunks.
    return std::min(chunks_, (window + cuda::kDecodeRows - 2) / cuda::kChunk + 2);
  }

  void enqueue_body() {
    const StepArrays arrays(shape_);
    device_->upload(metadata_.as<void>(), host_metadata_.as<void>(), arrays.bytes);
    const auto* data = metadata_.as<int32_t>();
    CudaProgram::Input input;
    input.ids = data + arrays.ids;
    input.batch = {.t = shape_.t,
                   .b = shape_.b,
                   .positions = data + arrays.positions,
                   .query_start = data + arrays.query_start,
                   .context_len = data + arrays.context_len,
                   .block_table = data + arrays.block_table,
                   .max_blocks = shape_.max_blocks,
                   .slots = data + arrays.slots};
    input.cache = cache_;
    input.max_chunks = [this](int64_t window) { return window_chunks(window); };
    input.partials = partials_.as<float>();
    input.counters = counters_.as<int32_t>();
    input.tiles = data + arrays.tiles;
    input.tile_count = shape_.tile_count;
    if (widened_chunks_ > 0) input.widened = widened_.as<void>();
    input.widened_first = data + arrays.widened_first;
    input.widened_chunks = widened_chunks_;
    input.widened_most = widened_most_;
    body_.run(input);
  }

  void enqueue_head(int64_t count, const int32_t* rows) {
    CudaProgram::Input input;
    input.batch.t = count;
    input.rows = rows;
    input.logits = logits_.as<float>();
    head_.run(input);
  }

  void enqueue_ending(int64_t count, Ending ending) {
    if (ending == Ending::kSample) {
      cuda::small_ops().sample({.logits = logits_.as<float>(),
                                .rows = count,
                                .vocab = vocab_,
                                .draws = sampling_.draws.as<cuda::SampleDraw>(),
                                .changes = sampling_.changes.as<LogitChange>(),
                                .unchanged = sampling_.unchanged.as<float>(),
                                .allowed = sampling_.allowed.as<uint32_t>(),
                                .tokens = sampling_.tokens.as<int32_t>()},
                               device_->stream());
      device_->download(sampling_.host_tokens.as<void>(), sampling_.tokens.as<void>(), count * 4);
      return;
    }
    // Keys are written where the host reads them: no copy stands behind the kernel.
    cuda::small_ops().argmax({.logits = logits_.as<float>(),
                              .rows = count,
                              .vocab = vocab_,
                              .best = best_keys_.as<uint64_t>(),
                              .arrived = best_keys_.as<uint32_t>() + best_keys_.bytes() / 12 * 2,
                              .keys = host_keys_.as<uint64_t>()},
                             device_->stream());
  }

  void head(std::span<const int32_t> rows) {
    std::copy(rows.begin(), rows.end(), host_logit_rows_.as<int32_t>());
    const auto count = static_cast<int64_t>(rows.size());
    device_->upload(logit_rows_.as<void>(), host_logit_rows_.as<void>(), count * 4);
    enqueue_head(count, logit_rows_.as<int32_t>());
    busy_ = true;
  }

  void enqueue_step(Ending ending) {
    enqueue_body();
    if (ending == Ending::kBody) return;
    enqueue_head(shape_.t, nullptr);
    enqueue_ending(shape_.t, ending);
  }

  void run_recorded(Ending ending) {
    busy_ = true;
    const GraphKey key{shape_, chunks_, cache_->id(), ending};
    if (!record_graphs_) {
      enqueue_step(ending);
      return;
    }
    const auto found = graphs_.find(key);
    if (found != graphs_.end() && found->second) {
      device_->run(*found->second);
      return;
    }
    if (found == graphs_.end()) {
      // The first time as it is: libraries load and choose what they need. Graphs of caches that
      // are gone go first.
      if (graphs_.size() >= kMaxGraphs) {
        settle(true);
        graphs_.clear();
      }
      graphs_.emplace(key, nullptr);
      enqueue_step(ending);
      return;
    }
    found->second = device_->record([&] { enqueue_step(ending); });
    device_->run(*found->second);
  }

  // Enqueues the step that was written down.
  void flush() {
    if (!pending_) return;
    pending_ = false;
    // Nobody can ask for what a cache that is gone was for.
    if (pending_cache_.expired()) return;
    if (recordable_) {
      run_recorded(Ending::kBody);
      return;
    }
    busy_ = true;
    enqueue_body();
  }

  static constexpr size_t kMaxGraphs = 256;
  // 258 000 tokens of eight heads of 128 values, an eightieth of an H100's memory.
  static constexpr int64_t kMostWidened = int64_t{1} << 30;

  const Graph& graph_;
  const int64_t vocab_, width_;
  const bool record_graphs_;
  std::unique_ptr<Device> device_;
  cuda::LinearRunner linears_;
  RopeTables rope_;  // while lowering
  CudaRows rows_;
  CudaProgram body_, head_;
  DeviceBuffer logits_, best_keys_, logit_rows_, counters_, partials_, widened_, metadata_;
  CudaSampling sampling_;
  HostBuffer host_keys_, host_logit_rows_, host_logits_, host_hidden_, host_metadata_;
  int64_t kv_heads_ = 1, group_ = 1, head_dim_ = 1, window_ = 0;
  bool full_attention_ = false;

  // The step that was written down last.
  std::weak_ptr<DeviceKvCache> pending_cache_;
  const CudaKvCache* cache_ = nullptr;
  StepShape shape_;
  int64_t chunks_ = 0, t_ = 0;
  bool recordable_ = false, pending_ = false, busy_ = false;
  std::vector<int32_t> tile_list_, widened_first_;
  int64_t widened_chunks_ = 0, widened_most_ = 0;
  std::map<GraphKey, std::unique_ptr<cuda::Graph>> graphs_;
};

}  // namespace

std::unique_ptr<ModelRunner> make_cuda_runner(const ModelConfig& config, const Graph& graph,
                                              const WeightProvider& weights,
                                              const ExecutorOptions& options, ThreadPool& pool) {
  return std::make_unique<CudaRunner>(config, graph, weights, options, pool);
}

}  // namespace whit
