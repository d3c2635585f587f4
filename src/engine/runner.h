// What runs a lowered model on one kind of device: an implementation for each backend, made by
// Executor and seen by nobody else.
//
// Arguments have been checked by Executor. Everything that is given to the caller lies in host
// memory.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "engine/program.h"
#include "models/model_config.h"
#include "ops/sampling.h"

namespace whit {

enum class Backend : uint8_t { kCpu, kCuda };
std::string_view name(Backend backend);        // "cpu", "cuda"
Backend parse_backend(std::string_view name);  // throws kInvalidArgument; "" is the CPU

struct ExecutorOptions {
  int64_t max_tokens = 512;  // rows of one step
  int64_t max_context =
      0;  // positions that RoPE tables cover; 0: the model's max_position_embeddings
  int64_t max_logit_rows = 128;  // rows of one logits() call
  cpu::Isa isa = cpu::Isa::kPortable;
  Backend backend = Backend::kCpu;
  bool record_graphs = true;  // CUDA: decoding steps run from graphs
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;

  virtual void step(std::span<const int32_t> ids, const BatchView& batch, KvCache& cache) = 0;
  // [T, D] of the last step, valid until the next.
  virtual const float* hidden() = 0;
  // [rows, V], valid until the next call or step.
  virtual const float* logits(std::span<const int32_t> rows) = 0;
  // ids[i] = the likeliest token after row i, the lowest id of equals.
  virtual void argmax(std::span<const int32_t> rows, std::span<int32_t> ids) = 0;

  // Whether sample() is there: logits are not in the host's memory, and drawing where they are
  // saves their way.
  virtual bool samples() const { return false; }
  // ids[i] = the token drawn after row i by draws[i]. Negative: the host is to draw it from
  // logits(), which also says what is wrong with them.
  virtual void sample(std::span<const int32_t> /*rows*/, std::span<const RowDraw> /*draws*/,
                      std::span<int32_t> /*ids*/) {}

  virtual KvCache make_cache(const KvCacheOptions& options) const = 0;
  // Bytes of weights that one decoded token reads.
  virtual int64_t weight_bytes() const = 0;
  // Of one step of `rows` tokens among the pool's threads, the head included.
  virtual int64_t barriers(int64_t /*rows*/) const { return 0; }
  virtual std::vector<Program::StepInfo> describe() const = 0;
};

// The model, the graph and the pool outlive the runner. options.max_context is resolved.
std::unique_ptr<ModelRunner> make_cpu_runner(const ModelConfig& config, const Graph& graph,
                                             const WeightProvider& weights,
                                             const ExecutorOptions& options, ThreadPool& pool);
// Throws kUnsupported, saying what is needed, where the program was built without CUDA or no GPU
// can be used, and kResource where its memory does not suffice.
std::unique_ptr<ModelRunner> make_cuda_runner(const ModelConfig& config, const Graph& graph,
                                              const WeightProvider& weights,
                                              const ExecutorOptions& options, ThreadPool& pool);

}  // namespace whit
