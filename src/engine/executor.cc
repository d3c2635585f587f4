#include "engine/executor.h"

namespace whit {
namespace {

ExecutorOptions resolved(ExecutorOptions options, const ModelConfig& config) {
  if (options.max_context <= 0) options.max_context = config.max_position_embeddings;
  return options;
}

}  // namespace

std::string_view name(Backend backend) { return backend == Backend::kCuda ? "cuda" : "cpu"; }

Backend parse_backend(std::string_view name) {
  if (name.empty() || name == "cpu") return Backend::kCpu;
  if (name == "cuda") return Backend::kCuda;
  throw Error(ErrorKind::kInvalidArgument, "unknown backend \"{}\"; possible: cpu, cuda", name);
}

Executor::Executor(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
                   const ExecutorOptions& options, ThreadPool& pool)
    : config_(config),
      options_(resolved(options, config)),
      pool_(pool),
      runner_(options.backend == Backend::kCuda
                  ? make_cuda_runner(config, graph, weights, options_, pool)
                  : make_cpu_runner(config, graph, weights, options_, pool)) {
  for (const Node& node : graph.nodes())
    if (node.op == Op::kLinear && node.layer >= 0)
      operations_per_token_ += 2 * static_cast<double>(node.n) * static_cast<double>(node.k);
}

void Executor::step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache) {
  for (const int32_t id : ids)
    if (id < 0 || id >= config_.vocab_size)
      throw Error(ErrorKind::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                  config_.vocab_size);
  for (int64_t t = 0; t < batch.t; ++t)
    if (batch.positions[t] >= options_.max_context)
      throw Error(ErrorKind::kInvalidArgument,
                  "position {} is past the longest context of {} tokens", batch.positions[t],
                  options_.max_context);
  WHIT_DCHECK(batch.t <= options_.max_tokens);
  runner_->step(ids, batch, cache);
  hidden_rows_ = batch.t;
}

void Executor::check_rows(std::span<const int32_t> rows) const {
  WHIT_DCHECK(static_cast<int64_t>(rows.size()) <= options_.max_logit_rows);
  for ([[maybe_unused]] const int32_t row : rows) WHIT_DCHECK(row >= 0 && row < hidden_rows_);
}

const float* Executor::logits(std::span<const int32_t> rows) {
  check_rows(rows);
  return runner_->logits(rows);
}

void Executor::argmax(std::span<const int32_t> rows, std::span<int32_t> ids) {
  check_rows(rows);
  WHIT_DCHECK(ids.size() == rows.size());
  runner_->argmax(rows, ids);
}

void Executor::sample(std::span<const int32_t> rows, std::span<const RowDraw> draws,
                      std::span<int32_t> ids) {
  check_rows(rows);
  WHIT_DCHECK(samples() && draws.size() == rows.size() && ids.size() == rows.size());
  runner_->sample(rows, draws, ids);
}

KvCache Executor::make_cache(int64_t sequences, int64_t context, const KvFormat& format) const {
  return make_cache({.format = format,
                     .pages = sequences,
                     .page_tokens = round_up(context, kv_page_multiple(format.type)),
                     .tails = sequences});
}

}  // namespace whit
