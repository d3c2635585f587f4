// The CPU backend: the body and the head as two programs.
#include <algorithm>
#include <cstring>

#include "engine/runner.h"

namespace whit {
namespace {

constexpr int64_t kFirstPositions = 512;

class CpuRunner : public ModelRunner {
 public:
  CpuRunner(const ModelConfig& config, const Graph& graph, const WeightProvider& weights,
            const ExecutorOptions& options, ThreadPool& pool)
      : config_(config),
        graph_(graph),
        width_(config.hidden_size),
        vocab_(config.vocab_size),
        max_context_(options.max_context),
        pool_(pool),
        ops_(cpu::small_ops(options.isa)),
        body_(graph, graph.body(), weights, {.max_tokens = options.max_tokens, .isa = options.isa},
              pool),
        head_(graph, graph.head(), weights,
              {.max_tokens = options.max_logit_rows, .isa = options.isa}, pool),
        head_rows_(options.max_logit_rows * width_ * 4) {}

  void step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache) override {
    cover_positions(batch);
    hidden_ = body_.run({.ids = ids.data(), .batch = batch, .rope = &rope_, .cache = &cache});
  }

  const float* hidden() override { return hidden_; }

  const float* logits(std::span<const int32_t> rows) override {
    auto* gathered = head_rows_.as<float>();
    for (size_t i = 0; i < rows.size(); ++i)
      std::memcpy(gathered + static_cast<int64_t>(i) * width_, hidden_ + rows[i] * width_,
                  width_ * 4);
    Program::Input input;
    input.hidden = gathered;
    input.batch.t = static_cast<int64_t>(rows.size());
    return head_.run(input);
  }

  void argmax(std::span<const int32_t> rows, std::span<int32_t> ids) override {
    const float* values = logits(rows);
    // For one row no worker is woken.
    const auto find = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        ids[i] = static_cast<int32_t>(ops_.argmax(values + i * vocab_, vocab_));
    };
    const auto count = static_cast<int64_t>(rows.size());
    if (count > 1)
      pool_.parallel_for(count, find);
    else
      find(0, count);
  }

  KvCache make_cache(const KvCacheOptions& options) const override {
    return KvCache(graph_, graph_.body(), options);
  }

  int64_t weight_bytes() const override { return body_.weight_bytes() + head_.weight_bytes(); }

  int64_t barriers(int64_t rows) const override {
    return body_.barriers(rows) + head_.barriers(rows);
  }

  std::vector<Program::StepInfo> describe() const override {
    std::vector<Program::StepInfo> steps = body_.describe();
    for (Program::StepInfo& step : head_.describe()) steps.push_back(std::move(step));
    return steps;
  }

 private:
  // The longest context's tables may be larger than the weights, and few requests need them: they
  // are made for twice the positions that are there, from the first on, whenever those run out.
  void cover_positions(const BatchView& batch) {
    int64_t last = 0;
    for (int64_t t = 0; t < batch.t; ++t) last = std::max<int64_t>(last, batch.positions[t]);
    if (last < positions_) return;
    positions_ = std::min(max_context_, std::max(kFirstPositions, 2 * (last + 1)));
    rope_ = rope_tables(config_, positions_);
  }

  const ModelConfig& config_;
  const Graph& graph_;
  const int64_t width_, vocab_, max_context_;
  int64_t positions_ = 0;  // that rope_ covers
  ThreadPool& pool_;
  const cpu::SmallOps& ops_;
  RopeTables rope_;
  Program body_, head_;
  Buffer head_rows_;
  const float* hidden_ = nullptr;
};

}  // namespace

std::unique_ptr<ModelRunner> make_cpu_runner(const ModelConfig& config, const Graph& graph,
                                             const WeightProvider& weights,
                                             const ExecutorOptions& options, ThreadPool& pool) {
  return std::make_unique<CpuRunner>(config, graph, weights, options, pool);
}

}  // namespace whit
