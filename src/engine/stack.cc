#include "engine/stack.h"

#include <algorithm>

namespace whit {

std::map<NodeId, LinearStack> make_stacks(const Graph& graph, NodeRange range,
                                          const WeightProvider& provider) {
  std::map<NodeId, LinearStack> by_first;
  for (const ScalingGroup& group : scaling_groups(graph, range)) {
    std::vector<LinearStack> stacks;
    for (const NodeId id : group.linears) {
      LinearWeight weight = provider.linear(graph.node(id));
      const auto fits = [&](const LinearStack& stack) {
        const LinearWeight& first = stack.parts.front();
        return first.view.format == weight.view.format &&
               first.view.group_size == weight.view.group_size &&
               first.activation == weight.activation && first.static_scale == weight.static_scale &&
               std::ranges::equal(first.salient_channels, weight.salient_channels);
      };
      auto found = std::find_if(stacks.begin(), stacks.end(), fits);
      if (found == stacks.end()) found = stacks.insert(found, LinearStack{});
      found->nodes.push_back(id);
      found->parts.push_back(std::move(weight));
    }
    for (LinearStack& stack : stacks) by_first.emplace(stack.nodes.front(), std::move(stack));
  }
  return by_first;
}

}  // namespace whit
