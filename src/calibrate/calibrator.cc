#include "calibrate/calibrator.h"

#include <algorithm>
#include <cstring>

#include "engine/engine_dir.h"

namespace whit {
namespace {

constexpr int64_t kWindowTokens = 4096;

}  // namespace

std::string CalibrationData::digest() const {
  return whit::digest({reinterpret_cast<const uint8_t*>(ids.data()), ids.size() * sizeof(int32_t)});
}

Json CalibrationData::description() const {
  Json json = {{"source", source},
               {"samples", samples},
               {"length", length},
               {"seed", seed},
               {"digest", digest()}};
  if (!parts.empty()) json["parts"] = parts;
  return json;
}

CalibrationData calibration_from_tokens(std::span<const int32_t> ids, std::string source,
                                        int64_t samples, int64_t length) {
  if (samples < 1 || length < 2)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration needs at least 1 sample of 2 tokens, not {} of {}", samples, length);
  const auto tokens = static_cast<int64_t>(ids.size());
  const int64_t blocks = tokens / length;
  if (blocks == 0)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration text {} has {} tokens, fewer than one sample of {}: give more text, "
                "or a smaller --calib-length",
                source, tokens, length);
  CalibrationData data;
  data.samples = std::min(samples, blocks);
  data.length = length;
  data.source = std::move(source);
  for (int64_t i = 0; i < data.samples; ++i) {
    const auto begin = ids.begin() + i * blocks / data.samples * length;
    data.ids.insert(data.ids.end(), begin, begin + length);
  }
  return data;
}

CalibrationData calibration_from_text(const Tokenizer& tokenizer, std::string_view text,
                                      std::string source, int64_t samples, int64_t length) {
  return calibration_from_tokens(tokenizer.encode(text, {.add_special_tokens = false}),
                                 std::move(source), samples, length);
}

CalibrationData mix_calibration(std::span<const CalibrationData> parts) {
  CalibrationData mixed;
  mixed.length = parts.front().length;
  mixed.seed = parts.front().seed;
  for (const CalibrationData& part : parts) {
    mixed.samples += part.samples;
    mixed.source += (mixed.source.empty() ? "" : " + ") + part.source;
    mixed.warnings.insert(mixed.warnings.end(), part.warnings.begin(), part.warnings.end());
    for (const Json& each : part.parts) mixed.parts.push_back(each);
  }
  std::vector<int64_t> taken(parts.size(), 0);
  for (int64_t i = 0; i < mixed.samples; ++i) {
    // The part that lags most behind its share; the first of equal ones.
    size_t next = 0;
    double most = -1;
    for (size_t p = 0; p < parts.size(); ++p) {
      if (taken[p] == parts[p].samples) continue;
      const double lag = static_cast<double>(parts[p].samples) * static_cast<double>(i + 1) /
                             static_cast<double>(mixed.samples) -
                         static_cast<double>(taken[p]);
      if (lag > most) {
        most = lag;
        next = p;
      }
    }
    const auto begin = parts[next].ids.begin() + taken[next]++ * mixed.length;
    mixed.ids.insert(mixed.ids.end(), begin, begin + mixed.length);
  }
  return mixed;
}

std::vector<CalibrationWindow> calibration_windows(const CalibrationData& data) {
  const int64_t sequences =
      std::clamp<int64_t>(kWindowTokens / data.length, 1, std::max<int64_t>(1, data.samples / 16));
  std::vector<CalibrationWindow> windows;
  for (int64_t first = 0; first < data.samples; first += sequences) {
    const int64_t count = std::min(sequences, data.samples - first);
    windows.push_back({first, count, count * data.length,
                       windows.size() % 8 == 7 ? Split::kHeldOut : Split::kSearch});
  }
  return windows;
}

int64_t rows_of(std::span<const CalibrationWindow> windows, Split split) {
  int64_t rows = 0;
  for (const CalibrationWindow& window : windows)
    if (window.split == split) rows += window.rows;
  return rows;
}

Tensor embed(const Graph& graph, const WeightProvider& original, const CalibrationData& data,
             cpu::Isa isa, ThreadPool& pool) {
  const Node& node = graph.node(0);
  for (const int32_t id : data.ids)
    if (id < 0 || id >= node.n)
      throw Error(ErrorKind::kInvalidData, "calibration token {} is outside the vocabulary of {}",
                  id, node.n);
  const LinearWeight table = original.linear(node);
  const int64_t tokens = data.samples * data.length, width = node.k;
  Tensor hidden(DType::kF32, {tokens, width});
  const EmbeddingArgs args{.table = table.view,
                           .ids = data.ids.data(),
                           .t = tokens,
                           .out = hidden.data<float>(),
                           .out_stride = width};
  pool.run([&](const Worker& worker) { cpu::small_ops(isa).embedding(args, worker); });
  return hidden;
}

namespace {

class CpuLayerPass : public LayerPass {
 public:
  CpuLayerPass(const Graph& graph, NodeRange range, const WeightProvider& weights,
               const RopeTables& rope, const LayerPassOptions& options, Matmul& matmul,
               cpu::Isa isa)
      : length_(options.length),
        width_(graph.value(graph.range_input(range)).width),
        rope_(rope),
        program_(graph, range, weights, {.max_tokens = options.max_rows, .isa = isa},
                 matmul.pool()),
        cache_(graph, range, DType::kF32, options.max_rows / options.length,
               round_up(options.length, 16)) {
    if (!options.observed.empty())
      observer_.emplace(graph, options.observed, options.expected_search_rows,
                        options.expected_held_out_rows, matmul);
  }

  void run(float* hidden, int64_t rows, Split split, Advance advance) override {
    const int64_t count = rows / length_;
    const std::vector<int64_t> starts(count, 0), lengths(count, length_);
    const ContiguousBatch batch(starts, lengths, cache_.page_tokens());
    InputTap tap;
    if (observer_)
      tap = [&](ValueId value, const float* values, int64_t n, int64_t stride) {
        observer_->observe(value, values, n, stride, split);
      };
    Program::Input input;
    input.hidden = hidden;
    input.batch = batch.view();
    input.rope = &rope_;
    input.cache = &cache_;
    const float* out = program_.run(input, tap);
    if (advance == Advance::kYes) std::memcpy(hidden, out, rows * width_ * 4);
  }

  std::vector<InputStats> take_sums() override { return observer_->take_sums(); }

 private:
  int64_t length_, width_;
  const RopeTables& rope_;
  Program program_;
  KvCache cache_;
  std::optional<Observer> observer_;
};

}  // namespace

std::unique_ptr<LayerPass> make_layer_pass(const Graph& graph, NodeRange range,
                                           const WeightProvider& weights, const RopeTables& rope,
                                           const LayerPassOptions& options, Matmul& matmul,
                                           cpu::Isa isa, Accelerator* accelerator) {
  if (accelerator != nullptr) return accelerator->layer_pass(graph, range, weights, rope, options);
  return std::make_unique<CpuLayerPass>(graph, range, weights, rope, options, matmul, isa);
}

LayerStream::LayerStream(const ModelConfig& config, const Graph& graph,
                         const WeightProvider& original, const CalibrationData& data, cpu::Isa isa,
                         ThreadPool& pool, Accelerator* accelerator)
    : graph_(graph),
      data_(data),
      isa_(isa),
      pool_(pool),
      accelerator_(accelerator),
      matmul_(pool, isa),
      rope_(rope_tables(config, data.length)),
      width_(config.hidden_size),
      windows_(calibration_windows(data)),
      hidden_(embed(graph, original, data, isa, pool)) {}

std::vector<InputStats> LayerStream::observe(int layer, const WeightProvider& weights,
                                             Advance advance) {
  std::vector<InputStats> stats = observe_sums(layer, weights, advance);
  finish_statistics(stats, pool_);
  return stats;
}

std::vector<InputStats> LayerStream::observe_sums(int layer, const WeightProvider& weights,
                                                  Advance advance) {
  const std::unique_ptr<LayerPass> pass = make_pass(layer, weights, accelerator_, true);
  run(*pass, advance);
  return pass->take_sums();
}

void LayerStream::advance(int layer, const WeightProvider& weights) {
  run(*make_pass(layer, weights, nullptr, false), Advance::kYes);
}

std::unique_ptr<LayerPass> LayerStream::make_pass(int layer, const WeightProvider& weights,
                                                  Accelerator* accelerator, bool observe) {
  const NodeRange range = graph_.layer(layer);
  LayerPassOptions options{.max_rows = windows_.front().rows, .length = data_.length};
  if (observe) {
    options.observed = scaling_groups(graph_, range);
    options.expected_search_rows = rows_of(windows_, Split::kSearch);
    options.expected_held_out_rows = rows_of(windows_, Split::kHeldOut);
  }
  return make_layer_pass(graph_, range, weights, rope_, options, matmul_, isa_, accelerator);
}

void LayerStream::run(LayerPass& pass, Advance advance) {
  for (const CalibrationWindow& window : windows_)
    pass.run(hidden_.data<float>() + window.first * data_.length * width_, window.rows,
             window.split, advance);
}

}  // namespace whit
