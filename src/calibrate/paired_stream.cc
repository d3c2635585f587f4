#include "calibrate/paired_stream.h"

#include <algorithm>
#include <cstring>

namespace whit {

std::vector<Half> layer_halves(const Graph& graph, NodeRange layer) {
  const std::vector<ScalingGroup> groups = scaling_groups(graph, layer);
  bool known = groups.size() == 4;
  std::vector<Half> halves;
  for (size_t i = 0; known && i < groups.size(); i += 2) {
    Half half{
        .inner = groups[i], .outer = groups[i + 1], .norm = graph.value(groups[i].input).producer};
    known = half.norm >= layer.begin && graph.node(half.norm).op == Op::kRmsNorm &&
            half.outer.linears.size() == 1;
    if (!known) break;
    const auto& consumers = graph.value(graph.node(half.outer.linears[0]).output).consumers;
    known = consumers.size() == 1 && graph.node(consumers[0]).op == Op::kAdd;
    halves.push_back(std::move(half));
  }
  if (!known)
    throw Error(ErrorKind::kUnsupported,
                "{}: a layer that is not norm, linears, linear, addition, twice, cannot be "
                "calibrated in halves; use --mode awq-gptq, awq or smoothquant",
                graph.node(layer.begin).name);
  return halves;
}

PairedStream::PairedStream(const ModelConfig& config, const Graph& graph,
                           const WeightProvider& original, const CalibrationData& data,
                           cpu::Isa isa, ThreadPool& pool)
    : graph_(graph),
      data_(data),
      isa_(isa),
      pool_(pool),
      matmul_(pool, isa),
      rope_(rope_tables(config, data.length)),
      width_(config.hidden_size),
      windows_(calibration_windows(data)),
      original_(embed(graph, original, data, isa, pool)),
      quantized_(original_.clone()) {}

ProgramOptions PairedStream::options() const {
  return {.max_tokens = windows_.front().rows, .isa = isa_};
}

// Every token counts: E[e·x̂ᵀ] is a small difference.
Observer PairedStream::observer_of(const ScalingGroup& group) {
  return {graph_,
          {&group, 1},
          rows_of(windows_, Split::kSearch),
          rows_of(windows_, Split::kHeldOut),
          matmul_,
          data_.samples * data_.length};
}

template <typename Run>
void PairedStream::for_windows(NodeRange range, Run&& run) {
  KvCache cache(graph_, range, DType::kF32, windows_.front().count, round_up(data_.length, 16));
  for (const CalibrationWindow& window : windows_) {
    const std::vector<int64_t> starts(window.count, 0), lengths(window.count, data_.length);
    const ContiguousBatch batch(starts, lengths, cache.page_tokens());
    Program::Input input;
    input.batch = batch.view();
    input.rope = &rope_;
    input.cache = &cache;
    run(window, input);
  }
}

void PairedStream::add(const float* rows, const CalibrationWindow& window, Tensor& to) {
  float* hidden = to.data<float>() + window.first * data_.length * width_;
  pool_.parallel_for(window.rows * width_, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) hidden[i] += rows[i];
  });
}

InputStats PairedStream::observe_inner(const Half& half, const WeightProvider& original) {
  const NodeId outer = half.outer.linears[0];
  const NodeRange range{half.norm, graph_.value(half.outer.input).producer + 1};
  Program norm(graph_, {half.norm, half.norm + 1}, original, options(), pool_);
  Program inner(graph_, range, original, options(), pool_);
  Program last(graph_, {outer, outer + 1}, original, options(), pool_);
  const int64_t k = graph_.value(half.inner.input).width;
  Observer observer = observer_of(half.inner);
  Tensor difference(DType::kF32, {windows_.front().rows, k});
  float* e = difference.data<float>();
  for_windows(range, [&](const CalibrationWindow& window, Program::Input& input) {
    const int64_t offset = window.first * data_.length * width_;
    input.hidden = original_.data<float>() + offset;
    const auto keep = [&](ValueId value, const float* rows, int64_t count, int64_t stride) {
      if (value != half.inner.input) return;
      for (int64_t t = 0; t < count; ++t) std::memcpy(e + t * k, rows + t * stride, k * 4);
    };
    input.hidden = inner.run(input, keep);
    add(last.run(input), window, original_);
    input.hidden = quantized_.data<float>() + offset;
    const float* rows = norm.run(input);
    pool_.parallel_for(window.rows * k, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) e[i] -= rows[i];
    });
    observer.observe(half.inner.input, rows, window.rows, k, window.split, {e, k});
  });
  return std::move(observer.finish().front());
}

InputStats PairedStream::observe_outer(const Half& half, const WeightProvider& original,
                                       const WeightProvider& mixed) {
  const Node& outer = graph_.node(half.outer.linears[0]);
  const NodeRange range{half.norm, graph_.value(half.outer.input).producer + 1};
  Program inner(graph_, range, mixed, options(), pool_);
  const int64_t k = graph_.value(half.outer.input).width;
  Observer observer = observer_of(half.outer);
  Tensor difference(DType::kF32, {windows_.front().rows, width_});
  float* e = difference.data<float>();
  const Tensor bias = outer.bias ? original.bias(outer) : Tensor::zeros(DType::kF32, {width_});
  outer_input_ = Tensor(DType::kF32, {data_.samples * data_.length, k});
  for_windows(range, [&](const CalibrationWindow& window, Program::Input& input) {
    const int64_t first = window.first * data_.length;
    input.hidden = quantized_.data<float>() + first * width_;
    float* rows = outer_input_.data<float>() + first * k;
    std::memcpy(rows, inner.run(input), window.rows * k * 4);
    const float* wanted = original_.data<float>() + first * width_;
    const float* stands = quantized_.data<float>() + first * width_;
    pool_.parallel_for(window.rows, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        for (int64_t i = 0; i < width_; ++i)
          e[t * width_ + i] =
              wanted[t * width_ + i] - stands[t * width_ + i] - bias.data<float>()[i];
    });
    observer.observe(half.outer.input, rows, window.rows, k, window.split, {e, width_});
  });
  return std::move(observer.finish().front());
}

void PairedStream::advance(const Half& half, const WeightProvider& quantized,
                           const float* factors) {
  const NodeId outer = half.outer.linears[0];
  const NodeRange range{outer, outer + 1};
  Program last(graph_, range, quantized, options(), pool_);
  const int64_t k = graph_.value(half.outer.input).width;
  for_windows(range, [&](const CalibrationWindow& window, Program::Input& input) {
    float* rows = outer_input_.data<float>() + window.first * data_.length * k;
    if (factors != nullptr)
      pool_.parallel_for(window.rows, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          for (int64_t i = 0; i < k; ++i) rows[t * k + i] /= factors[i];
      });
    input.hidden = rows;
    add(last.run(input), window, quantized_);
  });
  outer_input_ = Tensor();
}

}  // namespace whit
