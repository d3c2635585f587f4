#include "engine/executor.h"

#include <cstring>

namespace whit {
namespace {

ExecutorOptions resolved(ExecutorOptions options, const ModelConfig& config) {
  if (options.max_context <= 0) options.max_context = config.max_position_embeddings;
  return options;
}

}  // namespace

Executor::Executor(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
                   const ExecutorOptions& options, ThreadPool& pool)
    : config_(config),
      graph_(graph),
      options_(resolved(options, config)),
      pool_(pool),
      rope_(rope_tables(config, options_.max_context)),
      body_(graph, graph.body(), weights, {.max_tokens = options.max_tokens, .isa = options.isa},
            pool),
      head_(graph, graph.head(), weights,
            {.max_tokens = options.max_logit_rows, .isa = options.isa}, pool),
      head_rows_(options.max_logit_rows * config.hidden_size * 4) {}

const float* Executor::step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache) {
  for (const int32_t id : ids)
    if (id < 0 || id >= config_.vocab_size)
      throw Error(ErrorKind::kInvalidArgument, "token id {} is outside the vocabulary of {}", id,
                  config_.vocab_size);
  for (int64_t t = 0; t < batch.t; ++t)
    if (batch.positions[t] >= options_.max_context)
      throw Error(ErrorKind::kInvalidArgument,
                  "position {} is past the longest context of {} tokens", batch.positions[t],
                  options_.max_context);
  hidden_ = body_.run({.ids = ids.data(), .batch = batch, .rope = &rope_, .cache = &cache});
  hidden_rows_ = batch.t;
  return hidden_;
}

const float* Executor::logits(std::span<const int32_t> rows) {
  WHIT_DCHECK(static_cast<int64_t>(rows.size()) <= options_.max_logit_rows);
  const int64_t width = config_.hidden_size;
  auto* gathered = head_rows_.as<float>();
  for (size_t i = 0; i < rows.size(); ++i) {
    WHIT_DCHECK(rows[i] >= 0 && rows[i] < hidden_rows_);
    std::memcpy(gathered + static_cast<int64_t>(i) * width, hidden_ + rows[i] * width, width * 4);
  }
  Program::Input input;
  input.hidden = gathered;
  input.batch.t = static_cast<int64_t>(rows.size());
  return head_.run(input);
}

KvCache Executor::make_cache(int64_t sequences, int64_t context, DType dtype) const {
  return KvCache(graph_, graph_.body(), dtype, sequences, round_up(context, 16));
}

std::vector<Program::StepInfo> Executor::describe() const {
  std::vector<Program::StepInfo> steps = body_.describe();
  for (Program::StepInfo& step : head_.describe()) steps.push_back(std::move(step));
  return steps;
}

}  // namespace whit
