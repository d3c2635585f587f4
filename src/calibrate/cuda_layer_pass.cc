#include "calibrate/cuda_layer_pass.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/cuda/calibration_ops.h"

namespace whit {
namespace {

// Rows of a Gram matrix that one product makes, from the diagonal on: half of the matrix is left
// out nearly, and a block still fills the GPU.
constexpr int64_t kGramRows = 2048;

class CudaLayerPass : public LayerPass {
 public:
  CudaLayerPass(CudaMemory& memory, cuda::ProductF32& product, const Graph& graph, NodeRange range,
                const WeightProvider& weights, const RopeTables& rope,
                const LayerPassOptions& options);
  void run(float* hidden, int64_t rows, Split split, Advance advance) override;
  std::vector<InputStats> take_sums() override;

 private:
  // Sums of one value on the device, beside its InputStats.
  struct Sums {
    cuda::DeviceBuffer mean_abs, max_abs, gram[2], sample[2];
  };

  void load(const Node& node, const WeightProvider& weights);
  void compute(const Node& node, int64_t rows);
  void observe(ValueId value, int64_t rows, Split split);
  float* place(ValueId value) { return places_.at(value); }
  CUstream_st* stream() { return memory_.device().stream(); }

  CudaMemory& memory_;
  cuda::ProductF32& product_;
  const cuda::CalibrationOps& ops_;
  const Graph& graph_;
  NodeRange range_;
  LayerPassOptions options_;
  cuda::DeviceBuffer cos_, sin_, partials_;
  std::map<ValueId, cuda::DeviceBuffer> weights_, biases_;  // of norms and linears, by output
  std::vector<cuda::DeviceBuffer> values_;
  std::map<ValueId, float*> places_;
  std::vector<InputStats> stats_;
  std::map<ValueId, size_t> index_;
  std::vector<Sums> sums_;  // beside stats_
};

CudaLayerPass::CudaLayerPass(CudaMemory& memory, cuda::ProductF32& product, const Graph& graph,
                             NodeRange range, const WeightProvider& weights, const RopeTables& rope,
                             const LayerPassOptions& options)
    : memory_(memory),
      product_(product),
      ops_(cuda::calibration_ops()),
      graph_(graph),
      range_(range),
      options_(options),
      cos_(memory.copy_of(rope.cos, "rotary tables")),
      sin_(memory.copy_of(rope.sin, "rotary tables")) {
  const auto make_place = [&](ValueId value) {
    values_.push_back(
        memory.floats(options.max_rows * graph.value(value).width, "activations of calibration"));
    places_[value] = values_.back().as<float>();
  };
  make_place(graph.range_input(range));
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kRope)
      places_[node.output] = place(node.inputs[0]);
    else
      make_place(node.output);
    load(node, weights);
  }
  int64_t widest = 0;
  for (const ScalingGroup& group : options.observed) {
    const int64_t k = graph.value(group.input).width;
    widest = std::max(widest, k);
    index_[group.input] = stats_.size();
    stats_.push_back(no_sums(group.input, k, false));
    Sums& sums = sums_.emplace_back();
    sums.mean_abs = memory.zeros(k, "statistics");
    sums.max_abs = memory.zeros(k, "statistics");
    for (int which = 0; which < 2; ++which) {
      sums.gram[which] = memory.zeros(k * k, "Gram matrices");
      sums.sample[which] = memory.floats(Observer::kSampleRows * k, "sampled inputs");
    }
  }
  if (widest > 0)
    partials_ =
        memory.floats(cuda::magnitudes_partials(options.max_rows) * 2 * widest, "statistics");
}

void CudaLayerPass::load(const Node& node, const WeightProvider& weights) {
  if (node.op == Op::kRmsNorm)
    weights_[node.output] = memory_.copy_of(weights.norm(node).f32(), "a norm");
  if (node.op != Op::kLinear) return;
  const LinearWeight weight = weights.linear(node);
  if (weight.activation != cpu::Activation::kFloat || !weight.salient_channels.empty())
    throw Error(ErrorKind::kUnsupported,
                "{}: calibration on the GPU runs layers in floating point; use --backend cpu",
                node.name);
  cuda::DeviceBuffer& to = weights_[node.output];
  to = memory_.floats(node.n * node.k, "a layer's weights");
  memory_.upload_rows(to.as<void>(), node.n, node.k * 4,
                      [&](int64_t first, int64_t last, std::byte* stage) {
                        dequantize_rows(weight, first, last, reinterpret_cast<float*>(stage));
                      });
  if (weight.packed) weight.packed();
  if (node.bias)
    biases_[node.output] = memory_.copy_of(weights.bias(node).f32(), "a linear's bias");
}

void CudaLayerPass::compute(const Node& node, int64_t rows) {
  float* out = place(node.output);
  const auto in = [&](size_t index) { return place(node.inputs[index]); };
  const int64_t width = graph_.value(node.output).width;
  switch (node.op) {
    case Op::kRmsNorm:
      ops_.norm({.x = in(0),
                 .weight = weights_.at(node.output).as<float>(),
                 .eps = static_cast<float>(node.eps),
                 .t = rows,
                 .d = width,
                 .y = out},
                stream());
      return;
    case Op::kLinear:
      product_.run({.m = rows,
                    .n = node.n,
                    .k = node.k,
                    .x = in(0),
                    .x_stride = node.k,
                    .w = weights_.at(node.output).as<float>(),
                    .w_stride = node.k,
                    .y = out,
                    .y_stride = node.n},
                   stream());
      if (node.bias)
        ops_.add_bias(out, biases_.at(node.output).as<float>(), rows, node.n, stream());
      return;
    case Op::kRope:
      ops_.rope({.x = out,
                 .t = rows,
                 .heads = node.heads,
                 .head_dim = node.head_dim,
                 .length = options_.length,
                 .cos = cos_.as<float>(),
                 .sin = sin_.as<float>()},
                stream());
      return;
    case Op::kAttention:
      ops_.attention({.q = in(0),
                      .k = in(1),
                      .v = in(2),
                      .sequences = rows / options_.length,
                      .length = options_.length,
                      .heads = node.heads,
                      .kv_heads = graph_.value(node.inputs[1]).width / node.head_dim,
                      .head_dim = node.head_dim,
                      .scale = 1.0f / std::sqrt(static_cast<float>(node.head_dim)),
                      .sliding_window = node.sliding_window,
                      .out = out},
                     stream());
      return;
    case Op::kSiluMul:
      ops_.silu_mul(in(0), in(1), out, rows * width, stream());
      return;
    case Op::kAdd:
      ops_.add(in(0), in(1), out, rows * width, stream());
      return;
    case Op::kEmbedding:
      break;
  }
  throw Error(ErrorKind::kUnsupported, "{}: no part of a decoder layer", node.name);
}

void CudaLayerPass::run(float* hidden, int64_t rows, Split split, Advance advance) {
  const ValueId first = graph_.range_input(range_), last = graph_.range_output(range_);
  const int64_t bytes = rows * graph_.value(first).width * 4;
  memory_.upload(place(first), hidden, bytes);
  observe(first, rows, split);
  for (NodeId id = range_.begin; id < range_.end; ++id) {
    const Node& node = graph_.node(id);
    compute(node, rows);
    observe(node.output, rows, split);
  }
  if (advance == Advance::kYes) memory_.download(hidden, place(last), bytes);
}

void CudaLayerPass::observe(ValueId value, int64_t rows, Split which) {
  const auto found = index_.find(value);
  if (found == index_.end()) return;
  InputStats& stats = stats_[found->second];
  Sums& sums = sums_[found->second];
  const bool search = which == Split::kSearch;
  SplitStats& split = search ? stats.search : stats.held_out;
  const int64_t k = stats.k;
  const float* x = place(value);
  ops_.magnitudes({.x = x,
                   .t = rows,
                   .k = k,
                   .partials = partials_.as<float>(),
                   .sum = search ? sums.mean_abs.as<float>() : nullptr,
                   .largest = sums.max_abs.as<float>()},
                  stream());
  const ObservedRows chosen = observed_rows(
      split, rows, k, search ? options_.expected_search_rows : options_.expected_held_out_rows,
      Observer::kGramTokensPerChannel);
  const int at = static_cast<int>(which);
  for (const int64_t row : chosen.sampled)
    ops_.copy(x + row * k, sums.sample[at].as<float>() + split.sample_rows++ * k, k, stream());
  const float* rows_of_gram = x + chosen.first * k;
  for (int64_t column = 0; column < k && chosen.gram_count > 0; column += kGramRows)
    product_.run({.m = std::min(kGramRows, k - column),
                  .n = k - column,
                  .k = chosen.gram_count,
                  .x = rows_of_gram + column,
                  .x_stride = k * chosen.every,
                  .x_by_columns = true,
                  .w = rows_of_gram + column,
                  .w_stride = k * chosen.every,
                  .w_by_columns = true,
                  .y = sums.gram[at].as<float>() + column * k + column,
                  .y_stride = k,
                  .beta = 1},
                 stream());
  split.gram_tokens += chosen.gram_count;
  split.tokens += rows;
}

std::vector<InputStats> CudaLayerPass::take_sums() {
  // What the sums came from is not needed any more, and host tensors take their place.
  values_.clear();
  weights_.clear();
  for (size_t i = 0; i < stats_.size(); ++i) {
    InputStats& stats = stats_[i];
    Sums& sums = sums_[i];
    const int64_t k = stats.k;
    memory_.download(stats.mean_abs.data<void>(), sums.mean_abs.as<void>(), k * 4);
    memory_.download(stats.max_abs.data<void>(), sums.max_abs.as<void>(), k * 4);
    int which = 0;
    for (SplitStats* split : {&stats.search, &stats.held_out}) {
      split->gram = Tensor(DType::kF32, {k, k});
      memory_.download(split->gram.data<void>(), sums.gram[which].as<void>(), k * k * 4);
      memory_.download(split->sample.data<void>(), sums.sample[which].as<void>(),
                       split->sample_rows * k * 4);
      ++which;
    }
    sums = Sums();
  }
  return std::move(stats_);
}

}  // namespace

std::unique_ptr<LayerPass> cuda_layer_pass(CudaMemory& memory, cuda::ProductF32& product,
                                           const Graph& graph, NodeRange range,
                                           const WeightProvider& weights, const RopeTables& rope,
                                           const LayerPassOptions& options) {
  return std::make_unique<CudaLayerPass>(memory, product, graph, range, weights, rope, options);
}

}  // namespace whit
