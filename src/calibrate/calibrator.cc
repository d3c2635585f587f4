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

LayerStream::LayerStream(const ModelConfig& config, const Graph& graph,
                         const WeightProvider& original, const CalibrationData& data, cpu::Isa isa,
                         ThreadPool& pool)
    : graph_(graph),
      data_(data),
      isa_(isa),
      pool_(pool),
      matmul_(pool, isa),
      rope_(rope_tables(config, data.length)),
      width_(config.hidden_size),
      windows_(calibration_windows(data)),
      hidden_(embed(graph, original, data, isa, pool)) {}

std::vector<InputStats> LayerStream::observe(int layer, const WeightProvider& weights,
                                             Advance advance) {
  std::vector<InputStats> stats = observe_sums(layer, weights, advance);
  finish_statistics(stats);
  return stats;
}

std::vector<InputStats> LayerStream::observe_sums(int layer, const WeightProvider& weights,
                                                  Advance advance) {
  const std::vector<ScalingGroup> groups = scaling_groups(graph_, graph_.layer(layer));
  Observer observer(graph_, groups, rows_of(windows_, Split::kSearch),
                    rows_of(windows_, Split::kHeldOut), matmul_);
  run(layer, weights, &observer, advance);
  return observer.take_sums();
}

void LayerStream::advance(int layer, const WeightProvider& weights) {
  run(layer, weights, nullptr, Advance::kYes);
}

void LayerStream::run(int layer, const WeightProvider& weights, Observer* observer,
                      Advance advance) {
  const NodeRange range = graph_.layer(layer);
  const int64_t sequences = windows_.front().count;
  Program program(graph_, range, weights, {.max_tokens = sequences * data_.length, .isa = isa_},
                  pool_);
  KvCache cache(graph_, range, DType::kF32, sequences, round_up(data_.length, 16));
  for (const CalibrationWindow& window : windows_) {
    const std::vector<int64_t> starts(window.count, 0), lengths(window.count, data_.length);
    const ContiguousBatch batch(starts, lengths, cache.page_tokens());
    float* hidden = hidden_.data<float>() + window.first * data_.length * width_;
    InputTap tap;
    if (observer != nullptr)
      tap = [&](ValueId value, const float* rows, int64_t n, int64_t stride) {
        observer->observe(value, rows, n, stride, window.split);
      };
    Program::Input input;
    input.hidden = hidden;
    input.batch = batch.view();
    input.rope = &rope_;
    input.cache = &cache;
    const float* out = program.run(input, tap);
    if (advance == Advance::kYes) std::memcpy(hidden, out, window.rows * width_ * 4);
  }
}

}  // namespace whit
