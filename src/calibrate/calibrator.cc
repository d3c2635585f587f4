#include "calibrate/calibrator.h"

#include <algorithm>
#include <cstring>

#include "engine/engine_dir.h"

namespace whit {
namespace {

// Rows of one window: enough for the matrix products to be efficient, few enough that a window's
// activations stay small (a few tens of MB for a 1B model).
constexpr int64_t kWindowTokens = 4096;

}  // namespace

std::string CalibrationData::digest() const {
  return whit::digest({reinterpret_cast<const uint8_t*>(ids.data()), ids.size() * sizeof(int32_t)});
}

CalibrationData calibration_from_text(const Tokenizer& tokenizer, std::string_view text,
                                      std::string source, int64_t samples, int64_t length) {
  if (samples < 1 || length < 2)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration needs at least 1 sample of 2 tokens, not {} of {}", samples, length);
  const std::vector<int32_t> ids = tokenizer.encode(text, {.add_special_tokens = false});
  const auto tokens = static_cast<int64_t>(ids.size());
  const int64_t blocks = tokens / length;
  if (blocks == 0)
    throw Error(ErrorKind::kInvalidArgument,
                "calibration text {} has {} tokens, fewer than one sample of {}: give more text, "
                "or a smaller "
                "--calib-length",
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
      per_window_(std::clamp<int64_t>(kWindowTokens / data.length, 1,
                                      std::max<int64_t>(1, data.samples / 16))),
      hidden_(DType::kF32, {data.samples * data.length, config.hidden_size}) {
  const Node& node = graph.node(0);
  const LinearWeight table = original.linear(node);
  const EmbeddingArgs args{.table = table.view,
                           .ids = data.ids.data(),
                           .t = data.samples * data.length,
                           .out = hidden_.data<float>(),
                           .out_stride = width_};
  for (const int32_t id : data.ids)
    if (id < 0 || id >= node.n)
      throw Error(ErrorKind::kInvalidData, "calibration token {} is outside the vocabulary of {}",
                  id, node.n);
  pool.run([&](const Worker& worker) { cpu::small_ops(isa).embedding(args, worker); });
}

std::vector<InputStats> LayerStream::observe(int layer, const WeightProvider& weights,
                                             Advance advance) {
  int64_t rows[2] = {0, 0};
  for (int64_t w = 0; w < windows(); ++w)
    rows[static_cast<int>(split_of(w))] +=
        std::min(per_window_, data_.samples - w * per_window_) * data_.length;
  const std::vector<ScalingGroup> groups = scaling_groups(graph_, graph_.layer(layer));
  Observer observer(graph_, groups, rows[0], rows[1], matmul_);
  run(layer, weights, &observer, advance);
  return observer.finish();
}

void LayerStream::advance(int layer, const WeightProvider& weights) {
  run(layer, weights, nullptr, Advance::kYes);
}

void LayerStream::run(int layer, const WeightProvider& weights, Observer* observer,
                      Advance advance) {
  const NodeRange range = graph_.layer(layer);
  Program program(graph_, range, weights, {.max_tokens = per_window_ * data_.length, .isa = isa_},
                  pool_);
  KvCache cache(graph_, range, DType::kF32, per_window_, round_up(data_.length, 16));
  for (int64_t w = 0; w < windows(); ++w) {
    const int64_t first = w * per_window_, count = std::min(per_window_, data_.samples - first);
    const std::vector<int64_t> starts(count, 0), lengths(count, data_.length);
    const ContiguousBatch batch(starts, lengths, cache.page_tokens());
    float* hidden = hidden_.data<float>() + first * data_.length * width_;
    InputTap tap;
    if (observer != nullptr)
      tap = [&](ValueId value, const float* rows, int64_t n, int64_t stride) {
        observer->observe(value, rows, n, stride, split_of(w));
      };
    Program::Input input;
    input.hidden = hidden;
    input.batch = batch.view();
    input.rope = &rope_;
    input.cache = &cache;
    const float* out = program.run(input, tap);
    if (advance == Advance::kYes) std::memcpy(hidden, out, count * data_.length * width_ * 4);
  }
}

}  // namespace whit
