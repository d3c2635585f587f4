// The function-preserving outlier variant of a model: a few channels of every layer's norms are
// multiplied, and the input columns that read them divided, so that activations have outlier
// channels as large models do while the model's function is the same.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <random>
#include <span>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/safetensors.h"

namespace whit::testing {

inline std::vector<int64_t> seeded_channels(int64_t width, int64_t count, uint32_t seed) {
  std::vector<int64_t> all(width);
  std::iota(all.begin(), all.end(), 0);
  std::mt19937 random(seed);
  for (int64_t i = 0; i < count; ++i)
    std::swap(all[i], all[i + random() % static_cast<uint32_t>(width - i)]);
  all.resize(count);
  return all;
}

// Writes the variant of the Llama-like model at `source` to the directory `out`: in each decoder
// layer `channels` channels of both norms times `factor`, the matching columns of q/k/v and gate/up
// divided by it; in f32.
inline void write_outlier_variant(const std::filesystem::path& source,
                                  const std::filesystem::path& out, float factor,
                                  int64_t channels) {
  const Checkpoint checkpoint = Checkpoint::open(source);
  write_hf_directory(checkpoint, out, DType::kF32);
  const auto layers = checkpoint.config().at("num_hidden_layers").get<int>();
  const auto width = checkpoint.config().at("hidden_size").get<int64_t>();

  std::vector<SafetensorsWriter::Entry> entries;
  for (const std::string& name : checkpoint.names())
    entries.push_back({name, StorageType::kF32, checkpoint.get(name).shape});
  const std::filesystem::path file = out / "model.safetensors";
  SafetensorsWriter writer(file.string() + ".outliers", entries, {{"format", "pt"}});
  for (const std::string& name : checkpoint.names()) {
    Tensor tensor = checkpoint.load_f32(name);
    const std::span<float> values = tensor.f32();
    for (int layer = 0; layer < layers; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      if (!name.starts_with(prefix)) continue;
      const std::string part = name.substr(prefix.size());
      const bool norm =
          part == "input_layernorm.weight" || part == "post_attention_layernorm.weight";
      const bool reader = part == "self_attn.q_proj.weight" || part == "self_attn.k_proj.weight" ||
                          part == "self_attn.v_proj.weight" || part == "mlp.gate_proj.weight" ||
                          part == "mlp.up_proj.weight";
      if (!norm && !reader) continue;
      for (const int64_t channel : seeded_channels(width, channels, 1000 + layer))
        for (size_t i = channel; i < values.size(); i += width)
          values[i] = norm ? values[i] * factor : values[i] / factor;
    }
    writer.write(name, {reinterpret_cast<const uint8_t*>(values.data()), values.size_bytes()});
  }
  writer.finish();
  std::filesystem::rename(file.string() + ".outliers", file);
}

}  // namespace whit::testing
