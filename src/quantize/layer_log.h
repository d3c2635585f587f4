// What was written of decoder layers, as bytes: to be written again by a run that goes on behind
// them, or once the engine's header is known.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "engine/engine_dir.h"

namespace whit {

// Writes to an engine, and copies every call to a log in memory and to one in a file. Each of the
// three may be null.
class LayerOutput {
 public:
  LayerOutput(EngineWriter* writer, const Graph& graph, std::vector<uint8_t>* log,
              OutputFile* file = nullptr)
      : writer_(writer), graph_(graph), log_(log), file_(file) {}

  void write_linear(const Node& node, const WeightView& weight);
  void write_salient(const Node& node, std::span<const int32_t> channels, const WeightView& weight);
  void write_static_scale(const Node& node, float scale);
  void write_vector(const std::string& name, std::span<const float> values);
  // Throws kInvalidData where `log` is not what these functions kept of this graph.
  void replay(std::span<const uint8_t> log);
  const Graph& graph() const { return graph_; }
  // How many salient channels the linears had that were written.
  const std::map<NodeId, int64_t>& salient() const { return salient_; }

 private:
  enum class Call : uint64_t { kLinear = 1, kStaticScale, kVector, kSalient };
  void put(uint64_t number);
  void put(const void* data, int64_t bytes);
  void begin(Call call, const Node* node);
  bool logs() const { return log_ != nullptr || file_ != nullptr; }
  NodeId id_of(const Node& node) const {
    return static_cast<NodeId>(&node - graph_.nodes().data());
  }

  EngineWriter* writer_;
  const Graph& graph_;
  std::vector<uint8_t>* log_;
  OutputFile* file_;
  std::map<NodeId, int64_t> salient_;
};

}  // namespace whit
