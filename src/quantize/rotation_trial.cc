#include "quantize/rotation_trial.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/progress.h"
#include "quantize/rotate.h"
#include "quantize/sequential.h"

namespace whit {
namespace {

void copy(const Tensor& from, Tensor& to) {
  std::memcpy(to.data<float>(), from.data<float>(), from.size() * sizeof(float));
}

// Quantizes one layer from the original's hidden states; what comes out.
class LayerTrial {
 public:
  LayerTrial(const Model& model, const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
             ThreadPool& pool)
      : model_(model),
        graph_(model.graph()),
        weights_(model.weights()),
        recipe_(recipe),
        data_(data),
        isa_(isa),
        pool_(pool) {}

  Tensor run(int layer, const Tensor& before) const {
    return find_algorithm(recipe_.mode).decide == nullptr ? paired(layer, before)
                                                          : alone(layer, before);
  }

 private:
  Tensor paired(int layer, const Tensor& before) const {
    PairedStream stream(model_.config(), graph_, weights_, data_, isa_, pool_);
    for (Tensor* state : stream.state()) copy(before, *state);
    quantize_sequentially(stream, graph_, graph_.layer(layer), weights_,
                          {.scheme = recipe_.scheme, .salient = recipe_.salient});
    return stream.state()[1]->clone();
  }

  Tensor alone(int layer, const Tensor& before) const {
    LayerStream stream(model_.config(), graph_, weights_, data_, isa_, pool_);
    copy(before, *stream.state()[0]);
    const std::vector<InputStats> stats =
        stream.observe(layer, weights_, LayerStream::Advance::kNo);
    const LayerTask task{.graph = graph_,
                         .range = graph_.layer(layer),
                         .stats = stats,
                         .scheme = recipe_.scheme,
                         .fixed_alpha = recipe_.alpha,
                         .matmul = stream.matmul()};
    LayerWeights working = LayerWeights::load(graph_, task.range, weights_);
    LayerDecision decision = find_algorithm(recipe_.mode).decide(task, working);
    const QuantizedLayer rounded = round_layer(task, std::move(working), decision);
    stream.advance(layer, provider_of(rounded, graph_));
    return stream.state()[0]->clone();
  }

  const Model& model_;
  const Graph& graph_;
  const WeightProvider weights_;
  const Recipe& recipe_;
  const CalibrationData& data_;
  cpu::Isa isa_;
  ThreadPool& pool_;
};

// Rows [tokens, D] of the held-out windows; of all where none is held out.
std::vector<int64_t> judged_rows(const CalibrationData& data) {
  std::vector<int64_t> rows;
  for (const bool held_out : {true, false})
    if (rows.empty())
      for (const CalibrationWindow& window : calibration_windows(data))
        for (int64_t i = 0; i < window.rows; ++i)
          if (!held_out || window.split == Split::kHeldOut)
            rows.push_back(window.first * data.length + i);
  return rows;
}

double loss(const Tensor& exact, const Tensor& got, const std::vector<int64_t>& rows) {
  const int64_t width = exact.dim(1);
  double sum = 0;
  for (const int64_t row : rows) {
    double squares = 0, size = 0;
    for (int64_t i = row * width; i < (row + 1) * width; ++i) {
      const double want = exact.data<float>()[i], difference = got.data<float>()[i] - want;
      squares += difference * difference;
      size += want * want;
    }
    if (size > 0) sum += squares / size;
  }
  return sum / static_cast<double>(rows.size());
}

void rotate_rows(const Rotation& rotation, Tensor& hidden, ThreadPool& pool) {
  const int64_t width = hidden.dim(1);
  pool.parallel_for(hidden.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) rotation.apply(hidden.data<float>() + row * width);
  });
}

}  // namespace

double RotationTrial::as_is() const {
  double sum = 0;
  for (const Layer& each : layers) sum += each.as_is;
  return sum / static_cast<double>(layers.size());
}

double RotationTrial::rotated() const {
  double sum = 0;
  for (const Layer& each : layers) sum += each.rotated;
  return sum / static_cast<double>(layers.size());
}

std::string RotationTrial::told() const {
  std::string names;
  for (const Layer& each : layers)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", each.layer);
  return fmt::format(
      "{}: quantized in a rotated basis, layers {} lose {:.3f} times as much of the residual "
      "stream on {} held-out tokens as in their own (at most {} is asked)",
      pays() ? "rotated" : "not rotated", names, rotated() / as_is(), tokens,
      1 - kLeastRotationGain);
}

Json to_json(const RotationTrial& trial) {
  Json layers = Json::array();
  for (const RotationTrial::Layer& each : trial.layers)
    layers.push_back({{"layer", each.layer}, {"as_is", each.as_is}, {"rotated", each.rotated}});
  return {{"rotated", trial.pays()},
          {"loss_as_is", trial.as_is()},
          {"loss_rotated", trial.rotated()},
          {"least_gain", kLeastRotationGain},
          {"held_out_tokens", trial.tokens},
          {"layers", layers},
          {"why", trial.told()}};
}

std::vector<int> rotation_trial_layers(int layers) {
  const int count = std::min(layers, kRotationTrialLayers);
  std::vector<int> chosen;
  for (int i = 0; i < count; ++i) chosen.push_back((2 * i + 1) * layers / (2 * count));
  return chosen;
}

RotationTrial try_rotation(const Model& model, const Model& rotated, uint64_t seed,
                           const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
                           ThreadPool& pool) {
  if (!recipe.scheme.weights)
    throw Error(ErrorKind::kUnsupported,
                "--rotate=auto compares quantized layers; bf16 weights lose nothing in any basis");
  const CalibrationData part = evenly_spread(data, kRotationTrialSamples);
  const std::vector<int64_t> rows = judged_rows(part);
  const std::vector<int> layers = rotation_trial_layers(model.graph().layers());
  const LayerTrial as_is(model, recipe, part, isa, pool), turned(rotated, recipe, part, isa, pool);
  const Rotation rotation(model.config().hidden_size, seed);
  const WeightProvider weights = model.weights();
  LayerStream original(model.config(), model.graph(), weights, part, isa, pool);

  RotationTrial trial;
  trial.tokens = std::ssize(rows);
  Progress progress("trying a rotated basis on layer", layers.back() + 1);
  for (int index = 0; index <= layers.back(); ++index) {
    check_interrupt();
    const bool tried = std::find(layers.begin(), layers.end(), index) != layers.end();
    Tensor before;
    if (tried) before = original.state()[0]->clone();
    original.advance(index, weights);
    if (tried) {
      Tensor exact = original.state()[0]->clone();
      RotationTrial::Layer each{.layer = index};
      each.as_is = loss(exact, as_is.run(index, before), rows);
      rotate_rows(rotation, before, pool);
      rotate_rows(rotation, exact, pool);
      each.rotated = loss(exact, turned.run(index, before), rows);
      trial.layers.push_back(each);
    }
    progress.update(index + 1);
  }
  return trial;
}

}  // namespace whit
