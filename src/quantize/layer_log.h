// What was written of one decoder layer, as bytes: to be written again by a run that goes on behind
// it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/engine_dir.h"

namespace whit {

// Writes to an engine and keeps a copy of every call in `log`, where it is not null.
class LayerOutput {
 public:
  LayerOutput(EngineWriter& writer, const Graph& graph, std::vector<uint8_t>* log)
      : writer_(writer), graph_(graph), log_(log) {}

  void write_linear(const Node& node, const WeightView& weight);
  void write_salient(const Node& node, std::span<const int32_t> channels, const WeightView& weight);
  void write_static_scale(const Node& node, float scale);
  void write_vector(const std::string& name, std::span<const float> values);
  // Throws kInvalidData where `log` is not what these functions kept of this graph.
  void replay(std::span<const uint8_t> log);

 private:
  enum class Call : uint64_t { kLinear = 1, kStaticScale, kVector, kSalient };
  void put(uint64_t number);
  void put(const void* data, int64_t bytes);
  void begin(Call call, const Node* node);

  EngineWriter& writer_;
  const Graph& graph_;
  std::vector<uint8_t>* log_;
};

}  // namespace whit
