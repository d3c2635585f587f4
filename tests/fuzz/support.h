// For fuzz targets: a directory that goes with the process, a model of two layers in memory, and
// inputs of several parts.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "api/state_dict.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/model.h"

namespace whit::fuzz {

// Removed when the process ends.
struct Directory {
  Directory()
      : path(std::filesystem::temp_directory_path() / fmt::format("whit-fuzz-{}", getpid())) {
    std::filesystem::create_directory(path);
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

// An input of `count` parts with a zero byte between them; the last one takes the rest, and what is
// not there is empty.
inline std::vector<std::string_view> parts(const uint8_t* data, size_t size, size_t count) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  std::vector<std::string_view> result(count);
  for (size_t i = 0; i < count; ++i) {
    const size_t end = i + 1 == count ? rest.size() : std::min(rest.find('\0'), rest.size());
    result[i] = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return result;
}

// What a JSON merge patch (RFC 7386) makes of `json`: from a valid file to nearly valid ones, with
// digests made to fit by whoever asks. Nothing where `patch` is no JSON.
inline std::optional<Json> patched(Json json, std::string_view patch) {
  const Json change = Json::parse(patch, nullptr, /*allow_exceptions=*/false);
  if (change.is_discarded()) return std::nullopt;
  json.merge_patch(change);
  return json;
}

inline std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// tokenizer.json whose tokens are the 256 bytes, spelled with GPT-2's stand-ins, and <|turn|>.
inline Json byte_tokenizer() {
  Json vocabulary = Json::object();
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const int c = printable ? byte : next++;
    std::string symbol;
    if (c < 0x80) {
      symbol = static_cast<char>(c);
    } else {
      symbol += static_cast<char>(0xc0 | c >> 6);
      symbol += static_cast<char>(0x80 | (c & 63));
    }
    vocabulary[symbol] = byte;
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  const Json turn = {{"id", 256},           {"content", "<|turn|>"}, {"special", true},
                     {"normalized", false}, {"single_word", false},  {"lstrip", false},
                     {"rstrip", false}};
  return {{"version", "1.0"},
          {"added_tokens", Json::array({turn})},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
}

// Llama with D = F = 32, two heads, two layers, and a chat template; the same in every process.
inline const Model& tiny_model() {
  static std::vector<std::vector<float>> storage;
  static const Model model = [] {
    StateDict dict;
    uint32_t random = 1;
    const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      std::vector<float> values(static_cast<size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
      for (float& value : values) {
        random = random * 1664525u + 1013904223u;
        value = static_cast<float>(random >> 8) * 0x1p-25f - 0.25f;
      }
      storage.push_back(std::move(values));
      dict.tensors.push_back({.name = name,
                              .dtype = "F32",
                              .shape = std::move(shape),
                              .data = storage.back().data(),
                              .bytes = storage.back().size() * sizeof(float)});
    };
    add("model.embed_tokens.weight", {257, 32});
    for (int layer = 0; layer < 2; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      for (const char* norm : {"input_layernorm", "post_attention_layernorm"})
        add(prefix + norm + ".weight", {32});
      for (const char* linear : {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj",
                                 "mlp.up_proj", "mlp.down_proj"})
        add(prefix + linear + ".weight", {32, 32});
      for (const char* linear : {"self_attn.k_proj", "self_attn.v_proj"})
        add(prefix + linear + ".weight", {16, 32});
    }
    add("model.norm.weight", {32});
    dict.config_json = Json{
        {"architectures", {"LlamaForCausalLM"}},
        {"hidden_size", 32},
        {"intermediate_size", 32},
        {"num_hidden_layers", 2},
        {"num_attention_heads", 2},
        {"num_key_value_heads", 1},
        {"vocab_size", 257},
        {"max_position_embeddings", 512},
        {"tie_word_embeddings",
         true}}.dump();
    dict.tokenizer_json = byte_tokenizer().dump();
    dict.tokenizer_config_json =
        Json{{"chat_template",
              "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{% for c in "
              "m['tool_calls'] %}{{ c['function'] | tojson }}{% endfor %}\n{% endfor %}"
              "{% if tools %}{{ tools | tojson }}{% endif %}"}}
            .dump();
    return Model::from_checkpoint(checkpoint_of(dict), "the fuzzers' model");
  }();
  return model;
}

}  // namespace whit::fuzz
