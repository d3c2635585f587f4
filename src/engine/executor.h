// A whole model ready to run: the body (embedding and decoder layers) and the head (final norm and
// lm_head), lowered from one provider of weights for one backend.
#pragma once

#include <optional>
#include <span>

#include "engine/runner.h"

namespace whit {

class Executor {
 public:
  Executor(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
           const ExecutorOptions& options, ThreadPool& pool);

  // Runs batch.t ≤ max_tokens new tokens; their keys and values are appended to `cache`. Throws
  // kInvalidArgument for an id outside the vocabulary or a position outside max_context.
  void step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache);

  // The last layer's output [T, D] of the last step, valid until the next.
  const float* hidden() { return runner_->hidden(); }

  // Logits [rows, V] of the given rows of the last step (at most max_logit_rows), valid until the
  // next call.
  const float* logits(std::span<const int32_t> rows);

  // The likeliest token of each, the lowest id of equals: on a GPU the logits stay there.
  void argmax(std::span<const int32_t> rows, std::span<int32_t> ids);

  // Whether sample() is there, which draws a token after each row where its logits are; a negative
  // one is left to the caller, to draw from logits().
  bool samples() const { return runner_->samples(); }
  void sample(std::span<const int32_t> rows, std::span<const RowDraw> draws,
              std::span<int32_t> ids);

  // One page of at least `context` tokens for each of `sequences`.
  KvCache make_cache(int64_t sequences, int64_t context, const KvFormat& format) const;
  KvCache make_cache(const KvCacheOptions& options) const { return runner_->make_cache(options); }
  int64_t page_bytes(const KvFormat& format, int64_t page_tokens) const {
    return make_cache({.format = format, .page_tokens = page_tokens}).bytes();
  }
  const ExecutorOptions& options() const { return options_; }
  const ModelConfig& config() const { return config_; }
  ThreadPool& pool() { return pool_; }
  // Of the host, for what is done with logits.
  const cpu::SmallOps& ops() const { return cpu::small_ops(options_.isa); }
  // Bytes of weights that one decoded token reads.
  int64_t weight_bytes() const { return runner_->weight_bytes(); }
  // Multiplications and additions of the decoder's linears for one token.
  double operations_per_token() const { return operations_per_token_; }
  // Barriers of one step of `rows` tokens, the head included; 0 of a GPU.
  int64_t barriers(int64_t rows) const { return runner_->barriers(rows); }
  std::vector<Program::StepInfo> describe() const { return runner_->describe(); }

 private:
  void check_rows(std::span<const int32_t> rows) const;

  const ModelConfig& config_;
  ExecutorOptions options_;
  ThreadPool& pool_;
  std::unique_ptr<ModelRunner> runner_;
  int64_t hidden_rows_ = 0;
  double operations_per_token_ = 0;
};

}  // namespace whit
