#include "evaluate/streamed.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "base/progress.h"
#include "evaluate/tally.h"

namespace whit {
namespace {

constexpr int64_t kLogitRows = 64;

// One of the two models' hidden states, moving through its layers.
class Stream {
 public:
  Stream(const Model& model, std::span<const int32_t> ids, int64_t window, cpu::Isa isa,
         ThreadPool& pool)
      : model_(model),
        weights_(model.weights()),
        isa_(isa),
        pool_(pool),
        window_(window),
        width_(model.config().hidden_size),
        hidden_(DType::kF32, {static_cast<int64_t>(ids.size()), width_}) {
    const NodeRange table{model.graph().body().begin, model.graph().body().begin + 1};
    Program program(model.graph(), table, weights_, {.max_tokens = window, .isa = isa}, pool);
    for (int64_t first = 0; first < hidden_.dim(0); first += window) {
      Program::Input input;
      input.ids = ids.data() + first;
      input.batch.t = window;
      std::memcpy(row(first), program.run(input), window * width_ * 4);
    }
  }

  void advance(int layer, const RopeTables& rope) {
    const Graph& graph = model_.graph();
    const NodeRange range = graph.layer(layer);
    Program program(graph, range, weights_, {.max_tokens = window_, .isa = isa_}, pool_);
    const KvFormat format = model_.default_kv_dtype();
    KvCache cache(graph, range, format, 1, round_up(window_, kv_page_multiple(format.type)));
    const int64_t starts[] = {0}, counts[] = {window_};
    const ContiguousBatch batch(starts, counts, cache.page_tokens());
    for (int64_t first = 0; first < hidden_.dim(0); first += window_) {
      check_interrupt();
      Program::Input input;
      input.hidden = row(first);
      input.batch = batch.view();
      input.rope = &rope;
      input.cache = &cache;
      std::memcpy(row(first), program.run(input), window_ * width_ * 4);
    }
  }

  Program head() const {
    return {model_.graph(),
            model_.graph().head(),
            weights_,
            {.max_tokens = kLogitRows, .isa = isa_},
            pool_};
  }
  float* row(int64_t index) { return hidden_.data<float>() + index * width_; }

 private:
  const Model& model_;
  const WeightProvider weights_;
  cpu::Isa isa_;
  ThreadPool& pool_;
  int64_t window_, width_;
  Tensor hidden_;
};

}  // namespace

EvalResult evaluate_streamed(const Model& model, const Model& reference,
                             std::span<const int32_t> ids, const EvalOptions& options, cpu::Isa isa,
                             ThreadPool& pool) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t vocab = reference.config().vocab_size;
  if (model.config().vocab_size != vocab || model.graph().layers() != reference.graph().layers())
    throw Error(ErrorKind::kInvalidArgument, "{} is not made of {}: they cannot be compared",
                model.description(), reference.description());
  if (ids.size() < 2)
    throw Error(ErrorKind::kInvalidArgument,
                "the text has {} tokens; at least 2 are needed to score one", ids.size());
  for (const int32_t id : ids)
    if (id < 0 || id >= vocab)
      throw Error(ErrorKind::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                  vocab);
  const int64_t window = std::min<int64_t>({options.ctx_size, static_cast<int64_t>(ids.size()),
                                            reference.config().max_position_embeddings});
  int64_t windows = static_cast<int64_t>(ids.size()) / window;
  if (options.max_windows > 0) windows = std::min(windows, options.max_windows);
  ids = ids.first(windows * window);

  const RopeTables rope = rope_tables(reference.config(), window);
  Stream original(reference, ids, window, isa, pool), quantized(model, ids, window, isa, pool);
  const int layers = reference.graph().layers();
  Progress progress("evaluating layer", layers + 1);
  for (int layer = 0; layer < layers; ++layer) {
    original.advance(layer, rope);
    quantized.advance(layer, rope);
    progress.update(layer + 1);
  }
  Program original_head = original.head(), quantized_head = quantized.head();
  const cpu::SmallOps& ops = cpu::small_ops(isa);
  std::vector<float> lse(kLogitRows);
  Tally tally;
  for (int64_t w = 0; w < windows; ++w)
    for (int64_t first = w * window; first < (w + 1) * window - 1; first += kLogitRows) {
      check_interrupt();
      // A window's last token has no successor in it.
      const int64_t rows = std::min(kLogitRows, (w + 1) * window - 1 - first);
      Program::Input input;
      input.batch.t = rows;
      input.hidden = original.row(first);
      const float* wanted = original_head.run(input);
      log_sum_exps(wanted, rows, vocab, ops, pool, lse);
      input.hidden = quantized.row(first);
      tally.add(quantized_head.run(input), ids.subspan(first + 1, rows), vocab, wanted, lse, ops,
                pool);
    }
  EvalResult result = tally.result(true);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

int64_t streamed_bytes(const Model& reference, int64_t tokens, int64_t ctx_size) {
  const ModelConfig& config = reference.config();
  int64_t layer = 0;  // its weights as f32
  for (const Node& node : reference.graph().nodes())
    if (node.op == Op::kLinear && node.layer == 0) layer += node.n * node.k * 4;
  const int64_t heads = 2 * config.vocab_size * config.hidden_size * 4;
  const int64_t window = std::min(ctx_size, tokens);
  const int64_t activations = window * (4 * config.hidden_size + 3 * config.intermediate_size) * 4;
  return 2 * tokens * config.hidden_size * 4 + std::max(2 * layer + activations, heads) +
         2 * kLogitRows * config.vocab_size * 4;
}

}  // namespace whit
