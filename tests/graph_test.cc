#include "graph/graph.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "models/decoder.h"

namespace whit {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.architecture = "LlamaForCausalLM";
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 6;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.vocab_size = 100;
  config.tie_word_embeddings = true;
  return config;
}

std::vector<std::string> names(const Graph& graph, const std::vector<NodeId>& nodes) {
  std::vector<std::string> result;
  for (const NodeId id : nodes) result.push_back(graph.node(id).name);
  return result;
}

TEST(GraphTest, scaling_groups_are_the_linears_that_share_an_input_with_what_can_absorb_a_factor) {
  const Graph graph = build_graph(small_config());
  const std::vector<ScalingGroup> groups = scaling_groups(graph, graph.layer(1));
  ASSERT_EQ(groups.size(), 4u);
  const std::string layer = "model.layers.1.";
  EXPECT_EQ(names(graph, groups[0].linears),
            (std::vector<std::string>{layer + "self_attn.q_proj", layer + "self_attn.k_proj",
                                      layer + "self_attn.v_proj"}));
  EXPECT_EQ(graph.node(groups[0].producer).name, layer + "input_layernorm");
  EXPECT_EQ(names(graph, groups[1].linears),
            (std::vector<std::string>{layer + "self_attn.o_proj"}));
  EXPECT_EQ(graph.node(groups[1].producer).name, layer + "self_attn.v_proj");
  EXPECT_EQ(groups[1].repeats, 3);
  EXPECT_EQ(groups[1].head_dim, 8);
  EXPECT_EQ(names(graph, groups[2].linears),
            (std::vector<std::string>{layer + "mlp.gate_proj", layer + "mlp.up_proj"}));
  EXPECT_EQ(graph.node(groups[2].producer).name, layer + "post_attention_layernorm");
  EXPECT_EQ(names(graph, groups[3].linears), (std::vector<std::string>{layer + "mlp.down_proj"}));
  EXPECT_EQ(graph.node(groups[3].producer).name, layer + "mlp.up_proj");
  EXPECT_EQ(groups[3].repeats, 1);
}

TEST(GraphTest, body_and_head_cover_the_graph_and_a_tied_head_reads_the_embedding_table) {
  const Graph graph = build_graph(small_config());
  EXPECT_EQ(graph.layers(), 2);
  EXPECT_EQ(graph.body().begin, 0);
  EXPECT_EQ(graph.body().end, graph.head().begin);
  EXPECT_EQ(graph.head().end, graph.all().end);
  EXPECT_EQ(graph.node(graph.head().end - 1).weight_name, "model.embed_tokens.weight");
  EXPECT_EQ(graph.value(graph.range_output(graph.body())).width, 48);
}

TEST(GraphTest, every_linear_is_quantized_or_says_why_not) {
  const Graph graph = build_graph(small_config());
  int quantized = 0;
  for (const LinearDecision& decision : analyse_linears(graph)) {
    EXPECT_EQ(decision.quantize, decision.reason.empty());
    quantized += decision.quantize ? 1 : 0;
  }
  EXPECT_EQ(quantized, 2 * 7);
  EXPECT_EQ(analyse_linears(graph).size(), 2u * 7 + 2);
}

TEST(GraphTest, verify_refuses_weights_that_do_not_fit_their_values) {
  Graph graph;
  const ValueId x = graph.add_input("x", 8);
  graph.add({.op = Op::kLinear, .name = "a", .inputs = {x}, .n = 4, .k = 9}, 4);
  EXPECT_THROW(graph.verify(), Error);
}

}  // namespace
}  // namespace whit
