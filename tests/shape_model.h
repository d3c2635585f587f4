// Models of Llamas' shapes with random weights, for measuring what does not depend on their values:
// the time and memory of calibration and quantization, the speed of engines.
#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace whit::testing {

// A tokenizer whose tokens are bytes.
inline std::string byte_tokenizer() {
  Json vocabulary = Json::object();
  int other = 256;  // code points of bytes that print nothing, as GPT-2's
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    const int point = prints ? byte : other++;
    std::string text;
    if (point < 128) {
      text += static_cast<char>(point);
    } else {
      text += static_cast<char>(0xc0 | (point >> 6));
      text += static_cast<char>(0x80 | (point & 0x3f));
    }
    vocabulary[text] = byte;
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return Json{{"version", "1.0"},
              {"added_tokens", Json::array()},
              {"normalizer", nullptr},
              {"pre_tokenizer", byte_level},
              {"post_processor", nullptr},
              {"decoder", byte_level},
              {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}}
      .dump();
}

struct LlamaShape {
  int64_t hidden, ffn, heads, kv_heads, vocabulary;
  int layers;
};
constexpr LlamaShape kLlama8B = {4096, 14336, 32, 8, 128256, 32};   // Llama-3-8B
constexpr LlamaShape kLlama1100M = {2048, 5632, 32, 4, 32000, 22};  // TinyLlama-1.1B

// Weights are normal with a deviation of 0.02, in bf16: pieces of one block of random values, each
// tensor from another place on.
inline void write_llama_shape(const LlamaShape& model, const std::filesystem::path& out) {
  std::filesystem::create_directories(out);
  const int64_t hidden = model.hidden, kv = hidden / model.heads * model.kv_heads;
  write_file(out / "config.json", Json{{"architectures", {"LlamaForCausalLM"}},
                                       {"model_type", "llama"},
                                       {"hidden_size", hidden},
                                       {"intermediate_size", model.ffn},
                                       {"num_hidden_layers", model.layers},
                                       {"num_attention_heads", model.heads},
                                       {"num_key_value_heads", model.kv_heads},
                                       {"vocab_size", model.vocabulary},
                                       {"max_position_embeddings", 8192},
                                       {"rms_norm_eps", 1e-5},
                                       {"rope_theta", 500000.0},
                                       {"hidden_act", "silu"},
                                       {"tie_word_embeddings", false},
                                       {"torch_dtype", "bfloat16"}}
                                      .dump());
  write_file(out / "tokenizer.json", byte_tokenizer());
  std::vector<SafetensorsWriter::Entry> entries;
  const auto add = [&](const std::string& name, Shape shape) {
    entries.push_back({name + ".weight", StorageType::kBF16, std::move(shape)});
  };
  add("model.embed_tokens", {model.vocabulary, hidden});
  for (int layer = 0; layer < model.layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    add(prefix + "input_layernorm", {hidden});
    add(prefix + "self_attn.q_proj", {hidden, hidden});
    add(prefix + "self_attn.k_proj", {kv, hidden});
    add(prefix + "self_attn.v_proj", {kv, hidden});
    add(prefix + "self_attn.o_proj", {hidden, hidden});
    add(prefix + "post_attention_layernorm", {hidden});
    add(prefix + "mlp.gate_proj", {model.ffn, hidden});
    add(prefix + "mlp.up_proj", {model.ffn, hidden});
    add(prefix + "mlp.down_proj", {hidden, model.ffn});
  }
  add("model.norm", {hidden});
  add("lm_head", {model.vocabulary, hidden});

  std::vector<uint16_t> random_values((size_t{32} << 20) + 7919), ones(hidden, f32_to_bf16(1.0f));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  for (uint16_t& value : random_values) value = f32_to_bf16(normal(random));
  SafetensorsWriter writer(out / "model.safetensors", entries, {{"format", "pt"}});
  size_t place = 0;
  for (const SafetensorsWriter::Entry& entry : entries) {
    auto left = static_cast<size_t>(element_count(entry.shape));
    if (entry.shape.size() == 1) {
      writer.write(entry.name, {reinterpret_cast<const uint8_t*>(ones.data()), left * 2});
      continue;
    }
    for (; left > 0; place = (place + 7919) % random_values.size()) {
      const size_t count = std::min(left, random_values.size() - place);
      writer.write(entry.name,
                   {reinterpret_cast<const uint8_t*>(random_values.data() + place), count * 2});
      left -= count;
      place = (place + count) % random_values.size();
    }
  }
  writer.finish();
}

}  // namespace whit::testing
