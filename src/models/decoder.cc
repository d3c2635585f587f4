#include "models/decoder.h"

#include <cmath>
#include <numbers>

namespace whit {
namespace {

std::vector<float> inverse_frequencies(const ModelConfig& config) {
  const int64_t half = config.head_dim / 2;
  const RopeConfig& rope = config.rope;
  std::vector<float> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(config.head_dim);
    float frequency =
        1.0f / static_cast<float>(std::pow(rope.theta, static_cast<double>(exponent)));
    if (rope.scaling == RopeScaling::kLinear) frequency /= static_cast<float>(rope.factor);
    if (rope.scaling == RopeScaling::kLlama3) {
      // Long wavelengths are divided by the factor, short ones kept, those between interpolated
      // (Llama 3.1).
      const double length = static_cast<double>(rope.original_max_position_embeddings);
      const double wavelength = 2.0 * std::numbers::pi / frequency;
      if (wavelength > length / rope.low_freq_factor) {
        frequency /= static_cast<float>(rope.factor);
      } else if (wavelength >= length / rope.high_freq_factor) {
        const double smooth = (length / wavelength - rope.low_freq_factor) /
                              (rope.high_freq_factor - rope.low_freq_factor);
        frequency =
            static_cast<float>((1.0 - smooth) * frequency / rope.factor + smooth * frequency);
      }
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

class Builder {
 public:
  explicit Builder(const ModelConfig& config) : config_(config) {}

  Graph build() {
    const ValueId ids = graph_.add_input("input_ids", 1);
    ValueId hidden = graph_.add({.op = Op::kEmbedding,
                                 .name = "model.embed_tokens",
                                 .inputs = {ids},
                                 .n = config_.vocab_size,
                                 .k = config_.hidden_size,
                                 .weight_name = "model.embed_tokens.weight"},
                                config_.hidden_size);
    for (layer_ = 0; layer_ < config_.num_hidden_layers; ++layer_) hidden = mlp(attention(hidden));
    layer_ = -1;
    const ValueId normed = norm("model.norm", hidden);
    graph_.add({.op = Op::kLinear,
                .name = "lm_head",
                .inputs = {normed},
                .n = config_.vocab_size,
                .k = config_.hidden_size,
                .weight_name =
                    config_.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight"},
               config_.vocab_size);
    graph_.verify();
    return std::move(graph_);
  }

 private:
  std::string path(std::string_view module) const {
    return fmt::format("model.layers.{}.{}", layer_, module);
  }

  ValueId norm(std::string name, ValueId x) {
    std::string weight = name + ".weight";
    return graph_.add({.op = Op::kRmsNorm,
                       .name = std::move(name),
                       .layer = layer_,
                       .inputs = {x},
                       .n = config_.hidden_size,
                       .eps = config_.rms_norm_eps,
                       .weight_name = std::move(weight)},
                      config_.hidden_size);
  }

  ValueId linear(std::string_view module, ValueId x, int64_t n, bool bias) {
    const std::string name = path(module);
    return graph_.add({.op = Op::kLinear,
                       .name = name,
                       .layer = layer_,
                       .inputs = {x},
                       .n = n,
                       .k = graph_.value(x).width,
                       .bias = bias,
                       .weight_name = name + ".weight"},
                      n);
  }

  ValueId rope(std::string_view module, ValueId x, int64_t heads) {
    return graph_.add({.op = Op::kRope,
                       .name = path(module),
                       .layer = layer_,
                       .inputs = {x},
                       .heads = heads,
                       .head_dim = config_.head_dim},
                      heads * config_.head_dim);
  }

  ValueId add(std::string_view module, ValueId x, ValueId y) {
    return graph_.add({.op = Op::kAdd, .name = path(module), .layer = layer_, .inputs = {x, y}},
                      config_.hidden_size);
  }

  ValueId attention(ValueId hidden) {
    const int64_t heads = config_.num_attention_heads, kv_heads = config_.num_key_value_heads;
    const int64_t dim = config_.head_dim;
    const ValueId x = norm(path("input_layernorm"), hidden);
    const ValueId q = linear("self_attn.q_proj", x, heads * dim, config_.qkv_bias);
    const ValueId k = linear("self_attn.k_proj", x, kv_heads * dim, config_.qkv_bias);
    const ValueId v = linear("self_attn.v_proj", x, kv_heads * dim, config_.qkv_bias);
    const ValueId rotated_q = rope("self_attn.q_rope", q, heads);
    const ValueId rotated_k = rope("self_attn.k_rope", k, kv_heads);
    const ValueId mixed =
        graph_.add({.op = Op::kAttention,
                    .name = path("self_attn"),
                    .layer = layer_,
                    .inputs = {rotated_q, rotated_k, v},
                    .heads = heads,
                    .head_dim = dim,
                    .sliding_window =
                        layer_ >= config_.sliding_window_first_layer ? config_.sliding_window : 0},
                   heads * dim);
    return add("self_attn.residual", hidden,
               linear("self_attn.o_proj", mixed, config_.hidden_size, config_.o_bias));
  }

  ValueId mlp(ValueId hidden) {
    const ValueId x = norm(path("post_attention_layernorm"), hidden);
    const ValueId gate = linear("mlp.gate_proj", x, config_.intermediate_size, config_.mlp_bias);
    const ValueId up = linear("mlp.up_proj", x, config_.intermediate_size, config_.mlp_bias);
    const ValueId product =
        graph_.add({.op = Op::kSiluMul, .name = path("mlp"), .layer = layer_, .inputs = {gate, up}},
                   config_.intermediate_size);
    return add("mlp.residual", hidden,
               linear("mlp.down_proj", product, config_.hidden_size, config_.mlp_bias));
  }

  const ModelConfig& config_;
  Graph graph_;
  int layer_ = -1;
};

}  // namespace

Graph build_graph(const ModelConfig& config) { return Builder(config).build(); }

RopeTables rope_tables(const ModelConfig& config, int64_t positions) {
  const std::vector<float> frequencies = inverse_frequencies(config);
  RopeTables tables;
  tables.cos.reserve(positions * frequencies.size());
  tables.sin.reserve(positions * frequencies.size());
  for (int64_t position = 0; position < positions; ++position)
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      tables.cos.push_back(std::cos(angle));
      tables.sin.push_back(std::sin(angle));
    }
  return tables;
}

}  // namespace whit
