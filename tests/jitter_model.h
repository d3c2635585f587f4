// The function-preserving jittered variant of a model: channels are rescaled by 2^U(−.3, .3) where
// one linear's (or norm's) output is another's input, so that weights which lie on a 4-bit grid
// leave it while the model's function is the same.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace whit::testing {

// Writes the variant of the Llama-like model at `source` to the directory `out`, in f32: in each
// layer the norms against q/k/v and gate/up, v against o (shared by the query heads of a key/value
// head), up against down.
inline void write_jitter_variant(const std::filesystem::path& source,
                                 const std::filesystem::path& out, uint32_t seed) {
  const Checkpoint checkpoint = Checkpoint::open(source);
  const Json& config = checkpoint.config();
  const auto width = config.at("hidden_size").get<int64_t>();
  const auto heads = config.at("num_attention_heads").get<int64_t>();
  const auto kv_heads = config.at("num_key_value_heads").get<int64_t>();
  const int64_t head_dim = config.value("head_dim", width / heads);
  const auto inner = config.at("intermediate_size").get<int64_t>();

  HfContents contents;
  contents.config = config;
  contents.text_files = {{"generation_config.json", checkpoint.generation_config().dump(1) + "\n"},
                         {"tokenizer.json", checkpoint.tokenizer_json()},
                         {"tokenizer_config.json", checkpoint.tokenizer_config().dump(1) + "\n"}};
  for (const std::string& name : checkpoint.names()) {
    const StoredTensor& tensor = checkpoint.get(name);
    // Factors of the layer, drawn in one order whatever tensor asks for them.
    std::vector<float> rows, columns;  // of a weight; a norm's or bias's entries are rows
    int layer = -1;
    if (std::sscanf(name.c_str(), "model.layers.%d.", &layer) == 1) {
      std::mt19937 random(seed + static_cast<uint32_t>(layer));
      const auto draw = [&](int64_t count) {
        std::uniform_real_distribution<float> exponent(-0.3f, 0.3f);
        std::vector<float> factors(count);
        for (float& factor : factors) factor = std::exp2(exponent(random));
        return factors;
      };
      const auto inverse = [](std::vector<float> factors) {
        for (float& factor : factors) factor = 1 / factor;
        return factors;
      };
      const std::vector<float> attention = draw(width), mlp = draw(width),
                               values = draw(kv_heads * head_dim), up = draw(inner);
      const std::string part = name.substr(name.find('.', std::string("model.layers.").size()) + 1);
      if (part == "input_layernorm.weight") rows = attention;
      if (part == "post_attention_layernorm.weight") rows = mlp;
      if (part == "self_attn.q_proj.weight" || part == "self_attn.k_proj.weight" ||
          part == "self_attn.v_proj.weight")
        columns = inverse(attention);
      if (part == "mlp.gate_proj.weight" || part == "mlp.up_proj.weight") columns = inverse(mlp);
      if (part == "self_attn.v_proj.weight" || part == "self_attn.v_proj.bias") rows = values;
      if (part == "mlp.up_proj.weight" || part == "mlp.up_proj.bias") rows = up;
      if (part == "mlp.down_proj.weight") columns = inverse(up);
      if (part == "self_attn.o_proj.weight") {
        columns.resize(heads * head_dim);
        for (int64_t i = 0; i < heads * head_dim; ++i) {
          const int64_t kv_head = i / head_dim / (heads / kv_heads);
          columns[i] = 1 / values[kv_head * head_dim + i % head_dim];
        }
      }
    }
    const bool matrix = tensor.shape.size() == 2;
    const int64_t k = matrix ? tensor.shape[1] : 1;
    contents.weights.push_back({.name = name,
                                .shape = tensor.shape,
                                .read_rows = [&checkpoint, &tensor, matrix, k, rows, columns](
                                                 int64_t begin, int64_t end, float* out_rows) {
                                  checkpoint.read_rows_f32(tensor, begin, end, out_rows);
                                  const int64_t first = matrix ? begin : 0;
                                  const int64_t count = matrix ? end - begin : tensor.shape[0];
                                  for (int64_t row = 0; row < count; ++row)
                                    for (int64_t i = 0; i < k; ++i) {
                                      float& value = out_rows[row * k + i];
                                      if (!rows.empty()) value *= rows[first + row];
                                      if (!columns.empty()) value *= columns[i];
                                    }
                                }});
  }
  write_hf_directory(contents, out, DType::kF32);
}

}  // namespace whit::testing
