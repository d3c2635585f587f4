#include "quantize/rotation_trial.h"

#include <algorithm>

#include "base/progress.h"
#include "quantize/divergence.h"
#include "quantize/rotate.h"
#include "quantize/sequential.h"

namespace whit {
namespace {

// A model's layers, quantized by a recipe one after another.
class Chain {
 public:
  struct Behind {
    Tensor exact, quantized;  // hidden states behind them, [samples · length, D]
  };

  Chain(const Model& model, const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
        ThreadPool& pool)
      : model_(model),
        graph_(model.graph()),
        weights_(model.weights()),
        recipe_(recipe),
        data_(data),
        isa_(isa),
        pool_(pool) {}

  Behind run(Progress& progress, int done) const {
    return find_algorithm(recipe_.mode).decide == nullptr ? paired(progress, done)
                                                          : apart(progress, done);
  }

 private:
  Behind paired(Progress& progress, int done) const {
    PairedStream stream(model_.config(), graph_, weights_, data_, isa_, pool_);
    for (int layer = 0; layer < graph_.layers(); ++layer) {
      quantize_sequentially(stream, graph_, graph_.layer(layer), weights_,
                            {.scheme = recipe_.scheme, .salient = recipe_.salient});
      progress.update(done + layer + 1);
    }
    return {std::move(*stream.state()[0]), std::move(*stream.state()[1])};
  }

  // Statistics are of the original's inputs.
  Behind apart(Progress& progress, int done) const {
    LayerStream exact(model_.config(), graph_, weights_, data_, isa_, pool_),
        quantized(model_.config(), graph_, weights_, data_, isa_, pool_);
    for (int layer = 0; layer < graph_.layers(); ++layer) {
      check_interrupt();
      const std::vector<InputStats> stats =
          exact.observe(layer, weights_, LayerStream::Advance::kYes);
      const LayerTask task{.graph = graph_,
                           .range = graph_.layer(layer),
                           .stats = stats,
                           .scheme = recipe_.scheme,
                           .fixed_alpha = recipe_.alpha,
                           .matmul = exact.matmul()};
      LayerWeights working = LayerWeights::load(graph_, task.range, weights_, pool_);
      LayerDecision decision = find_algorithm(recipe_.mode).decide(task, working);
      const QuantizedLayer rounded = round_layer(task, std::move(working), decision);
      quantized.advance(layer, provider_of(rounded, graph_));
      progress.update(done + layer + 1);
    }
    return {std::move(*exact.state()[0]), std::move(*quantized.state()[0])};
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

}  // namespace

std::string RotationTrial::told() const {
  return fmt::format(
      "{}: on a part of the data the layers, quantized in a rotated basis, cause {:.3f} times the "
      "KL "
      "divergence that they cause in their own on {} held-out tokens (at most {} is asked)",
      pays() ? "rotated" : "not rotated", rotated / as_is, tokens, 1 - kLeastRotationGain);
}

Json to_json(const RotationTrial& trial) {
  return {{"rotated", trial.pays()},         {"kld_as_is", trial.as_is},
          {"kld_rotated", trial.rotated},    {"least_gain", kLeastRotationGain},
          {"held_out_tokens", trial.tokens}, {"why", trial.told()}};
}

RotationTrial try_rotation(const Model& model, const Model& rotated, uint64_t seed,
                           const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
                           ThreadPool& pool) {
  if (!recipe.scheme.weights)
    throw Error(ErrorKind::kUnsupported,
                "--rotate=auto compares quantized layers; bf16 weights lose nothing in any basis");
  const CalibrationData part = evenly_spread(data, kRotationTrialSamples);
  const std::vector<int64_t> judged = judged_sequences(part);
  const int layers = model.graph().layers();
  const int64_t rows = std::ssize(judged) * part.length, width = model.config().hidden_size;
  Progress progress("trying a rotated basis, layer", 2 * layers);

  std::vector<float> variants, exact;  // the judged rows: as it is, then rotated; the original's
  {
    const Chain::Behind behind = Chain(model, recipe, part, isa, pool).run(progress, 0);
    append(behind.exact, judged, part.length, exact);
    append(behind.quantized, judged, part.length, variants);
  }
  append(Chain(rotated, recipe, part, isa, pool).run(progress, layers).quantized, judged,
         part.length, variants);
  const Rotation rotation(width, seed);
  pool.parallel_for(rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = rows + begin; row < rows + end; ++row)
      rotation.undo(variants.data() + row * width);
  });
  Tensor states(DType::kF32, {2 * rows, width}), wanted(DType::kF32, {rows, width});
  std::copy(variants.begin(), variants.end(), states.data<float>());
  std::copy(exact.begin(), exact.end(), wanted.data<float>());
  const std::vector<double> klds = HeadComparison(model, isa, pool).divergences(wanted, states);
  return {.as_is = klds[0], .rotated = klds[1], .tokens = rows};
}

}  // namespace whit
