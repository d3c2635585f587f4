// A whole model ready to run: the body (embedding and decoder layers) and the head (final norm and
// lm_head), lowered from one provider of weights.
#pragma once

#include <optional>
#include <span>

#include "engine/program.h"
#include "models/model_config.h"

namespace whit {

struct ExecutorOptions {
  int64_t max_tokens = 512;  // rows of one step
  int64_t max_context =
      0;  // positions that RoPE tables cover; 0: the model's max_position_embeddings
  int64_t max_logit_rows = 128;  // rows of one logits() call
  cpu::Isa isa = cpu::Isa::kPortable;
};

class Executor {
 public:
  Executor(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
           const ExecutorOptions& options, ThreadPool& pool);

  // Runs batch.t ≤ max_tokens new tokens; their keys and values are appended to `cache`. Returns
  // the last layer's output [T, D], valid until the next step. Throws kInvalidArgument for an id
  // outside the vocabulary or a position outside max_context.
  const float* step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache);

  // Logits [rows, V] of the given rows of the last step (at most max_logit_rows), valid until the
  // next call.
  const float* logits(std::span<const int32_t> rows);

  KvCache make_cache(int64_t sequences, int64_t context, DType dtype) const;
  const ExecutorOptions& options() const { return options_; }
  const ModelConfig& config() const { return config_; }
  ThreadPool& pool() { return pool_; }
  const cpu::SmallOps& ops() const { return cpu::small_ops(options_.isa); }
  // Bytes of weights that one decoded token reads.
  int64_t weight_bytes() const { return body_.weight_bytes() + head_.weight_bytes(); }
  std::vector<Program::StepInfo> describe() const;

 private:
  const ModelConfig& config_;
  const Graph& graph_;
  ExecutorOptions options_;
  ThreadPool& pool_;
  RopeTables rope_;
  Program body_, head_;
  const float* hidden_ = nullptr;
  int64_t hidden_rows_ = 0;
  Buffer head_rows_;
};

}  // namespace whit
