#include "quantize/rotation_trial.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/progress.h"
#include "quantize/divergence.h"
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

// The sequences of the held-out windows; all where none is held out.
std::vector<int64_t> judged_sequences(const CalibrationData& data) {
  std::vector<int64_t> sequences;
  for (const bool held_out : {true, false})
    if (sequences.empty())
      for (const CalibrationWindow& window : calibration_windows(data))
        for (int64_t i = 0; i < window.count; ++i)
          if (!held_out || window.split == Split::kHeldOut) sequences.push_back(window.first + i);
  return sequences;
}

// Appends the sequences' rows of hidden [samples · length, D].
void append(const Tensor& hidden, const std::vector<int64_t>& sequences, int64_t length,
            std::vector<float>& to) {
  const int64_t values = length * hidden.dim(1);
  for (const int64_t sequence : sequences) {
    const float* from = hidden.data<float>() + sequence * values;
    to.insert(to.end(), from, from + values);
  }
}

template <typename Turn>
void turn_rows(Tensor& hidden, ThreadPool& pool, const Turn& turn) {
  const int64_t width = hidden.dim(1);
  pool.parallel_for(hidden.dim(0), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) turn(hidden.data<float>() + row * width);
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
      "{}: layers {}, quantized alone in a rotated basis, cause {:.3f} times the KL divergence "
      "that "
      "they cause in their own on {} held-out tokens (at most {} is asked)",
      pays() ? "rotated" : "not rotated", names, rotated() / as_is(), tokens,
      1 - kLeastRotationGain);
}

Json to_json(const RotationTrial& trial) {
  Json layers = Json::array();
  for (const RotationTrial::Layer& each : trial.layers)
    layers.push_back({{"layer", each.layer}, {"as_is", each.as_is}, {"rotated", each.rotated}});
  return {{"rotated", trial.pays()},
          {"kld_as_is", trial.as_is()},
          {"kld_rotated", trial.rotated()},
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
  const std::vector<int64_t> judged = judged_sequences(part);
  const Graph& graph = model.graph();
  const std::vector<int> layers = rotation_trial_layers(graph.layers());
  const LayerTrial as_is(model, recipe, part, isa, pool), turned(rotated, recipe, part, isa, pool);
  const Rotation rotation(model.config().hidden_size, seed);
  const WeightProvider weights = model.weights();
  const RopeTables rope = rope_tables(model.config(), part.length);
  const int64_t rows = std::ssize(judged) * part.length, width = model.config().hidden_size;

  RotationTrial trial;
  trial.tokens = rows;
  // Held-out rows behind the current layer: of every variant so far, and of the original.
  std::vector<float> variants, exact;
  std::optional<LayerStream> original;
  original.emplace(model.config(), graph, weights, part, isa, pool);
  Progress progress("trying a rotated basis, layer", graph.layers());
  for (int index = 0; index < graph.layers(); ++index) {
    check_interrupt();
    if (!variants.empty() || !exact.empty()) {
      Stage stage(graph, graph.layer(index), weights, part.length, isa, pool);
      stage.advance(variants.data(), std::ssize(variants) / width, rope);
      stage.advance(exact.data(), std::ssize(exact) / width, rope);
    }
    if (original) {
      Tensor before = original->state()[0]->clone();
      original->advance(index, weights);
      if (std::find(layers.begin(), layers.end(), index) != layers.end()) {
        append(as_is.run(index, before), judged, part.length, variants);
        turn_rows(before, pool, [&](float* row) { rotation.apply(row); });
        Tensor behind = turned.run(index, before);
        turn_rows(behind, pool, [&](float* row) { rotation.undo(row); });
        append(behind, judged, part.length, variants);
        trial.layers.push_back({.layer = index});
      }
      if (index == layers.back()) {  // from here on only what is judged
        append(*original->state()[0], judged, part.length, exact);
        original.reset();
      }
    }
    progress.update(index + 1);
  }
  Tensor states(DType::kF32, {std::ssize(variants) / width, width}),
      wanted(DType::kF32, {rows, width});
  std::copy(variants.begin(), variants.end(), states.data<float>());
  std::copy(exact.begin(), exact.end(), wanted.data<float>());
  const std::vector<double> klds = HeadComparison(model, isa, pool).divergences(wanted, states);
  for (size_t i = 0; i < trial.layers.size(); ++i) {
    trial.layers[i].as_is = klds[2 * i];
    trial.layers[i].rotated = klds[2 * i + 1];
  }
  return trial;
}

}  // namespace whit
