// The composition behind --mode auto: error-compensated rounding of one scaling group after
// another, each under the inputs that the quantized model really gives it and towards the outputs
// of the original.
//
// Per group: the weights are moved towards what makes up for the roundings before them
// (quantize/paired_target.h); AWQ's factors, and SmoothQuant's where activations are int8, are
// searched by the error that compensated rounding leaves; each linear keeps the best of refined,
// compensated and plain rounding on held-out tokens (quantize/compensate.h); salient channels,
// where asked for, stay in bf16 (quantize/salient.h). No group ends worse on held-out tokens than
// plain rounding of its corrected weights.
#pragma once

#include "calibrate/paired_stream.h"
#include "quantize/algorithm.h"
#include "quantize/salient.h"

namespace whit {

struct SequentialLayer {
  QuantizedLayer layer;
  std::vector<GroupReport> reports;
  std::vector<Json> profiles;  // quantize/profile.h
};

struct SequentialOptions {
  QuantScheme scheme;
  SchemePlan plan = {};  // of linears that have another scheme; those of one group have the same
  SalientRequest salient = {};
};

// Rounds one layer and leaves `stream` before the next. Layers come in their order.
SequentialLayer quantize_sequentially(PairedStream& stream, const Graph& graph, NodeRange range,
                                      const WeightProvider& original,
                                      const SequentialOptions& options);

// A rounded layer as a program's weights; `layer` must outlive the program.
WeightProvider provider_of(const QuantizedLayer& layer, const Graph& graph);

}  // namespace whit
