#include "engine/stack.h"

#include <algorithm>

namespace whit {

void dequantize_rows(const LinearWeight& weight, int64_t row_begin, int64_t row_end, float* out) {
  dequantize_rows(weight.view, row_begin, row_end, out);
  const std::span<const int32_t> channels = weight.salient_channels;
  if (channels.empty()) return;
  std::vector<float> second((row_end - row_begin) * weight.salient.k);
  dequantize_rows(weight.salient, row_begin, row_end, second.data());
  const float* next = second.data();
  for (int64_t row = row_begin; row < row_end; ++row, out += weight.view.k)
    for (const int32_t channel : channels) out[channel] += *next++;
}

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
