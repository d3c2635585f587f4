// libFuzzer target: what stands beside a model's weights. The first byte chooses: config.json, from
// which a graph is built, or tokenizer_config.json. Arbitrary bytes are either refused with an
// Error or make a graph that holds together.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.h"
#include "models/decoder.h"
#include "tokenizer/tokenizer_config.h"

namespace {

void read_model_config(std::string_view text) {
  const auto config =
      whit::ModelConfig::from_json(whit::parse_json(std::string(text), "fuzz"), "fuzz");
  // Graphs of a few layers say as much as large ones, of which most of the time would go.
  if (config.num_hidden_layers > 8) return;
  const whit::Graph graph = whit::build_graph(config);
  graph.verify();
  if (graph.layers() != config.num_hidden_layers) std::abort();
  for (int layer = 0; layer < graph.layers(); ++layer)
    for (const whit::ScalingGroup& group : whit::scaling_groups(graph, graph.layer(layer)))
      if (group.linears.empty()) std::abort();
  whit::analyse_linears(graph);
  if (config.head_dim <= 1024) whit::rope_tables(config, 3);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (data[0] % 2 == 0)
      read_model_config(text);
    else
      whit::TokenizerConfig::from_json(text, "fuzz").chat_template(true);
  } catch (const whit::Error&) {
  }
  return 0;
}
