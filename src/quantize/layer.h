// One decoder layer being quantized: working copies of its weights, the statistics of its inputs,
// and what was chosen.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "calibrate/accelerator.h"
#include "engine/program.h"
#include "quant/scheme.h"

namespace whit {

// What was chosen for one scaling group, with the evidence.
struct GroupReport {
  std::string name;       // its linears
  std::string algorithm;  // "awq", "smoothquant", "rtn"
  std::optional<double>
      exponent;        // AWQ: of the activation magnitude; SmoothQuant: the migration strength α
  double clipped = 0;  // share of weight groups whose range was shrunk
  // Squared output error over the output's energy on held-out tokens, under the numerics that will
  // run.
  double rtn_error = 0, error = 0;
  std::string note;  // why something was left undone
  // What the user must know: where the algorithm asked for could not be followed, and statistics
  // that cannot carry it. They become warnings of the run.
  std::vector<std::string> fallbacks;
};
Json to_json(const GroupReport& report);
GroupReport group_report_from_json(const Json& json, std::string_view where);

// Fallbacks that the statistics of a group's input call for: channels that are zero on every
// calibration token, and too few tokens for so many channels.
void judge_statistics(const InputStats& input, GroupReport& report);

// The scheme of linears of the decoder; those of one scaling group have the same.
using SchemePlan = std::map<NodeId, QuantScheme>;

// A working copy: f32 weights that algorithms scale, fold and finally round.
struct LayerWeights {
  std::map<NodeId, Tensor> linears;  // [N, K]
  std::map<NodeId, Tensor> biases;   // [N]
  std::map<NodeId, Tensor> norms;    // [D]

  static LayerWeights load(const Graph& graph, NodeRange range, const WeightProvider& provider,
                           ThreadPool& pool);
  LayerWeights clone(ThreadPool& pool) const;
};

// Rounded: what is written, and what runs.
struct QuantizedLayer {
  std::map<NodeId, QuantizedTensor> linears;
  std::map<NodeId, QuantScheme> schemes;
  // Second, bf16 weights of a few channels (engine/program.h), added to `linears`.
  struct Salient {
    std::vector<int32_t> channels;
    QuantizedTensor weight;  // kBF16 [N, channels]
  };
  std::map<NodeId, Salient> salient;
  std::map<NodeId, float> static_scales;
  LayerWeights folded;  // norms and biases after folding; the f32 linears are released
};

// Everything an algorithm sees of a layer.
struct LayerTask {
  const Graph& graph;
  NodeRange range;
  const std::vector<InputStats>& stats;
  const QuantScheme& scheme;
  std::optional<double> fixed_alpha;  // SmoothQuant: no search
  Matmul& matmul;
  Accelerator* accelerator = nullptr;  // of searches; null: the CPU

  const InputStats& stats_of(ValueId value) const;
  ThreadPool& pool() const { return matmul.pool(); }
};

// Divides what `group.producer` puts out by s [K] and multiplies its linears' columns by it: the
// layer's function is unchanged (up to rounding of f32). Where query heads share a producer's row,
// their factors must be equal.
void fold(const ScalingGroup& group, const float* s, const Graph& graph, LayerWeights& weights,
          ThreadPool& pool);

// The channel of `group.input` that row `row` of its producing linear becomes; the first of them
// where query heads share it.
int64_t channel_of_row(const ScalingGroup& group, int64_t row);

}  // namespace whit
