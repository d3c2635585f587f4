// The decoder-only transformer that every supported family is: its graph, from config values.
#pragma once

#include "graph/graph.h"
#include "models/model_config.h"

namespace whit {

//   h = embed(ids)
//   per layer:  x = norm(h);  q, k, v = linear(x);  h += o(attention(rope(q), rope(k), v))
//               x = norm(h);  h += down(silu(gate(x)) · up(x))
//   logits = head(norm(h))
Graph build_graph(const ModelConfig& config);

// cos and sin of every position's rotation, [positions, head_dim/2] each, computed as transformers
// does (frequencies and angles in f32), with the config's RoPE scaling applied to the frequencies.
struct RopeTables {
  std::vector<float> cos, sin;
};
RopeTables rope_tables(const ModelConfig& config, int64_t positions);

}  // namespace whit
