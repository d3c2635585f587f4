#include "graph/graph.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace whit {

ValueId Graph::add_input(std::string name, int64_t width) {
  values_.push_back({.name = std::move(name), .width = width});
  return static_cast<ValueId>(values_.size()) - 1;
}

ValueId Graph::add(Node node, int64_t width) {
  const auto id = static_cast<NodeId>(nodes_.size());
  for (const ValueId input : node.inputs) values_[input].consumers.push_back(id);
  values_.push_back({.name = node.name, .width = width, .producer = id});
  node.output = static_cast<ValueId>(values_.size()) - 1;
  layers_ = std::max(layers_, node.layer + 1);
  nodes_.push_back(std::move(node));
  return nodes_.back().output;
}

NodeRange Graph::layer(int index) const {
  const auto inside = [&](const Node& node) { return node.layer == index; };
  const auto begin = std::find_if(nodes_.begin(), nodes_.end(), inside);
  const auto end = std::find_if_not(begin, nodes_.end(), inside);
  return {static_cast<NodeId>(begin - nodes_.begin()), static_cast<NodeId>(end - nodes_.begin())};
}

NodeRange Graph::body() const { return {0, layer(layers_ - 1).end}; }

NodeRange Graph::head() const { return {body().end, all().end}; }

ValueId Graph::range_input(NodeRange range) const { return nodes_[range.begin].inputs[0]; }

ValueId Graph::range_output(NodeRange range) const { return nodes_[range.end - 1].output; }

void Graph::verify() const {
  std::set<std::string_view> names;
  for (const Node& node : nodes_) {
    if (!names.insert(node.name).second)
      throw Error(ErrorKind::kInvalidData, "graph: two nodes are named {}", node.name);
    for (const ValueId input : node.inputs)
      if (input < 0 || input >= node.output)
        throw Error(ErrorKind::kInvalidData, "graph: {} reads a value that is made after it",
                    node.name);
    if (node.op == Op::kLinear &&
        (values_[node.inputs[0]].width != node.k || values_[node.output].width != node.n))
      throw Error(ErrorKind::kInvalidData, "graph: {} maps {} values to {}, its weight is [{}, {}]",
                  node.name, values_[node.inputs[0]].width, values_[node.output].width, node.n,
                  node.k);
  }
}

std::vector<ScalingGroup> scaling_groups(const Graph& graph, NodeRange range) {
  std::vector<ScalingGroup> groups;
  for (NodeId id = range.begin; id < range.end; ++id) {
    const Node& node = graph.node(id);
    if (node.op != Op::kLinear) continue;
    const ValueId input = node.inputs[0];
    const auto known = std::find_if(groups.begin(), groups.end(),
                                    [&](const ScalingGroup& g) { return g.input == input; });
    if (known != groups.end()) {
      known->linears.push_back(id);
      continue;
    }
    ScalingGroup group{.input = input, .linears = {id}};
    const NodeId producer = graph.value(input).producer;
    if (producer >= range.begin) {
      const Node& made_by = graph.node(producer);
      // A factor may be folded only where every reader of the value is one of this group's linears.
      const auto& consumers = graph.value(input).consumers;
      const bool linears_only = std::all_of(consumers.begin(), consumers.end(), [&](NodeId c) {
        return graph.node(c).op == Op::kLinear;
      });
      if (linears_only && made_by.op == Op::kRmsNorm) group.producer = producer;
      if (linears_only && made_by.op == Op::kSiluMul) {
        const NodeId up = graph.value(made_by.inputs[1]).producer;
        if (graph.node(up).op == Op::kLinear) group.producer = up;
      }
      if (linears_only && made_by.op == Op::kAttention) {
        const NodeId v = graph.value(made_by.inputs[2]).producer;
        if (graph.node(v).op == Op::kLinear) {
          group.producer = v;
          group.head_dim = made_by.head_dim;
          group.repeats = made_by.heads * made_by.head_dim / graph.node(v).n;
        }
      }
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<LinearDecision> analyse_linears(const Graph& graph) {
  std::vector<LinearDecision> decisions;
  for (NodeId id = 0; id < graph.all().end; ++id) {
    const Node& node = graph.node(id);
    if (node.op == Op::kEmbedding)
      decisions.push_back(
          {id, false, "a table of rows to look up, not a product; it follows --head where tied"});
    if (node.op != Op::kLinear) continue;
    if (node.layer < 0)
      decisions.push_back({id, false, "the output head follows --head (int8 per row, or bf16)"});
    else
      decisions.push_back({id, true, ""});
  }
  return decisions;
}

}  // namespace whit
