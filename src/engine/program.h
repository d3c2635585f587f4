// A range of graph nodes lowered for this CPU: linears stacked where they share an input, packed
// for the chosen kernels, norms and activations fused with the int8 quantization that their readers
// want (rows of e4m3 are rounded in a step of their own), residual adds folded into the product
// before them.
//
// Weights come from a provider, so the same code runs a whole engine, or one layer with original or
// quantized weights for calibration. Running never allocates.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "graph/graph.h"
#include "kernels/cpu/table.h"
#include "models/decoder.h"
#include "quant/scheme.h"

namespace whit {

// What the linears of a scheme multiply.
cpu::Activation activation_of(const QuantScheme& scheme);

// A linear's (or the embedding table's) weight as it is to be executed.
struct LinearWeight {
  WeightView view;
  cpu::Activation activation = cpu::Activation::kFloat;
  float static_scale = 0;  // > 0: per-tensor static activations
  // Input channels, ascending, of which `salient` [N, channels] holds a second, floating-point
  // weight; its product with the f32 inputs is added. Linears of one stack have the same channels.
  std::span<const int32_t> salient_channels = {};
  WeightView salient = {};
  std::shared_ptr<const void> owner;  // keeps what `view` points to alive
  // Called once the weight is packed: its source pages are not needed any more. May be empty.
  std::function<void()> packed;
};

// Rows [row_begin, row_end) as f32 [rows, K], the salient channels' second weight added.
void dequantize_rows(const LinearWeight& weight, int64_t row_begin, int64_t row_end, float* out);

struct WeightProvider {
  std::function<LinearWeight(const Node&)> linear;  // kLinear and kEmbedding nodes
  std::function<Tensor(const Node&)> norm;          // f32 [D]
  std::function<Tensor(const Node&)> bias;          // f32 [N], for linears with a bias
};

struct ProgramOptions {
  int64_t max_tokens = 512;  // rows of one run
  cpu::Isa isa = cpu::Isa::kPortable;
};

// Called with the f32 input rows of every linear group while a program runs, outside of any pool
// task.
using InputTap =
    std::function<void(ValueId value, const float* rows, int64_t count, int64_t stride)>;

class Program {
 public:
  Program(const Graph& graph, NodeRange range, const WeightProvider& weights,
          const ProgramOptions& options, ThreadPool& pool);
  ~Program();
  Program(Program&&) noexcept;

  struct Input {
    const int32_t* ids = nullptr;   // where the range begins with an embedding
    const float* hidden = nullptr;  // [T, width] otherwise
    BatchView batch;  // batch.t rows; the rest is needed where the range holds attention
    const RopeTables* rope = nullptr;
    KvCache* cache = nullptr;
  };
  // Runs the range on batch.t ≤ max_tokens rows; returns the last value, [T, width], valid until
  // the next run.
  const float* run(const Input& input, const InputTap& tap = {});

  // Packed bytes that a product with few rows reads, embedding tables not counted.
  int64_t weight_bytes() const;

  // Barriers of a run of `rows` rows without a tap: 0 with one thread.
  int64_t barriers(int64_t rows) const;

  struct StepInfo {
    std::string name;  // the nodes' paths
    std::string kernel;
    int64_t n = 0, k = 0, bytes = 0;
  };
  std::vector<StepInfo> describe() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit
