// A model's computation as a flat, topologically ordered list of block-level operations.
//
// A node's name is its Hugging Face module path ("model.layers.3.mlp.down_proj"); its parameters
// are <name>.weight and <name>.bias. Which linears share an input, and what produces that input, is
// read from here and nowhere else.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace whit {

enum class Op : uint8_t {
  kEmbedding,  // ids → [T, D]
  kRmsNorm,    // x → x
  kLinear,     // x → y
  kRope,       // q or k → rotated
  kAttention,  // q, k, v → [T, H·Dh]; appends k and v to the layer's cache
  kSiluMul,    // gate, up → silu(gate)·up
  kAdd,        // x, y → x + y
};

using ValueId = int32_t;
using NodeId = int32_t;

struct Node {
  Op op;
  std::string name;
  int layer = -1;  // decoder layer, or −1
  std::vector<ValueId> inputs;
  ValueId output = -1;
  // kLinear: [N, K] of the weight; kRope, kAttention: heads and head size; kAttention: window.
  int64_t n = 0, k = 0;
  bool bias = false;
  int64_t heads = 0, head_dim = 0;
  int64_t sliding_window = 0;
  double eps = 0;           // kRmsNorm
  std::string weight_name;  // the checkpoint's tensor: <name>.weight, or the tied table's
};

struct Value {
  std::string name;
  int64_t width = 0;     // values per token
  NodeId producer = -1;  // −1: the graph's input
  std::vector<NodeId> consumers;
};

// Half-open range of nodes.
struct NodeRange {
  NodeId begin = 0, end = 0;
};

class Graph {
 public:
  // Building, in order.
  ValueId add_input(std::string name, int64_t width);
  ValueId add(Node node, int64_t width);  // sets node.output; returns it

  std::span<const Node> nodes() const { return nodes_; }
  const Node& node(NodeId id) const { return nodes_[id]; }
  std::span<const Value> values() const { return values_; }
  const Value& value(ValueId id) const { return values_[id]; }
  int layers() const { return layers_; }
  NodeRange layer(int index) const;  // the nodes of one decoder layer, contiguous
  NodeRange all() const { return {0, static_cast<NodeId>(nodes_.size())}; }
  // Embedding up to the last layer; final norm and head.
  NodeRange body() const;
  NodeRange head() const;
  // The value that enters and the one that leaves a range.
  ValueId range_input(NodeRange range) const;
  ValueId range_output(NodeRange range) const;

  // Checks that inputs precede uses, widths agree and names are distinct; throws kInvalidData
  // otherwise.
  void verify() const;

 private:
  std::vector<Node> nodes_;
  std::vector<Value> values_;
  int layers_ = 0;
};

// Linears of one range that read the same value, with what produces that value.
struct ScalingGroup {
  ValueId input = -1;
  std::vector<NodeId> linears;
  // The node into which a per-channel factor of `input` can be folded without changing the
  // function, or −1:
  //   kRmsNorm   its weight;
  //   kLinear    its output rows (up_proj through SiLU·mul; v_proj through attention, repeated for
  //   the query heads that
  //              share a key/value head).
  NodeId producer = -1;
  // Channels of `input` per independent factor: query head h reads factors of kv head h / repeats.
  // 1: no sharing.
  int64_t repeats = 1;
  int64_t head_dim = 0;  // of the sharing, where repeats > 1
};
std::vector<ScalingGroup> scaling_groups(const Graph& graph, NodeRange range);

// Which linears a scheme can quantize, and why each other one is left as it is.
struct LinearDecision {
  NodeId node;
  bool quantize;
  std::string reason;  // empty where quantize
};
std::vector<LinearDecision> analyse_linears(const Graph& graph);

}  // namespace whit
