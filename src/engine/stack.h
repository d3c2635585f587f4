// Linears that run as one product: they read one value, in one format. Both backends lower a range
// of nodes to these.
#pragma once

#include <map>

#include "engine/program.h"

namespace whit {

struct LinearStack {
  std::vector<NodeId> nodes;
  std::vector<LinearWeight> parts;
};

// The stacks of a range by their first node.
std::map<NodeId, LinearStack> make_stacks(const Graph& graph, NodeRange range,
                                          const WeightProvider& provider);

}  // namespace whit
