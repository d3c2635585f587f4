// The composition behind --mode auto: error-compensated rounding of one scaling group after
// another, each under the inputs that the quantized model really gives it and towards the outputs
// of the original.
//
// Per group: the weights are moved towards what makes up for the roundings before them
// (quantize/paired_target.h); AWQ's factors, and SmoothQuant's where activations are int8, are
// searched by the error that compensated rounding leaves; each linear keeps the best of refined,
// compensated and plain rounding on held-out tokens (quantize/compensate.h). No group ends worse on
// held-out tokens than plain rounding of its corrected weights.
#pragma once

#include "calibrate/paired_stream.h"
#include "quantize/algorithm.h"

namespace whit {

struct SequentialLayer {
  QuantizedLayer layer;
  std::vector<GroupReport> reports;
  std::vector<Json> profiles;  // quantize/profile.h
};

struct SequentialOptions {
  QuantScheme scheme;
  SchemePlan plan = {};  // of linears that have another scheme; those of one group have the same
  // Share of the input channels of int4 groups, those of largest mean magnitude, that keep a bf16
  // weight.
  double salient = 0;
};

// Rounds one layer and leaves `stream` before the next. Layers come in their order.
SequentialLayer quantize_sequentially(PairedStream& stream, const Graph& graph, NodeRange range,
                                      const WeightProvider& original,
                                      const SequentialOptions& options);
// How many channels of a linear with K = k keep a bf16 weight: at least one, 0 for a share of 0.
int64_t salient_count(const QuantScheme& scheme, double share, int64_t k);

// A rounded layer as a program's weights; `layer` must outlive the program.
WeightProvider provider_of(const QuantizedLayer& layer, const Graph& graph);

}  // namespace whit
