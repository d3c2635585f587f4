// Calibration data flowing through a model and through its quantized copy side by side, half a
// layer (attention, or MLP) at a time: what each linear must correct of the roundings before it.
//
// A half is a norm, the linears that read it, and one linear whose output is added to the residual
// stream. The loop for every half, in order:
//   observe_inner   statistics of the norm's output;  the original's stream passes the half
//   …round the inner linears…
//   observe_outer   statistics of the input of the linear before the addition
//   …round the outer linear…
//   advance         the quantized copy's stream passes the half
// Resident: two hidden states [samples · length, D] and the outer linear's input [samples · length,
// K]. Limit: layers of exactly two such halves.
#pragma once

#include "calibrate/calibrator.h"

namespace whit {

struct Half {
  ScalingGroup inner, outer;
  NodeId norm = -1;
};
// The halves of one decoder layer. Throws kUnsupported where the layer is built otherwise.
std::vector<Half> layer_halves(const Graph& graph, NodeRange layer);

// Statistics are of the quantized copy's inputs x̂. Their `cross` is E[e·x̂ᵀ]:
//   inner [K, K]  e = x − x̂: linears give W·e too little
//   outer [D, K]  e = what the linear must put out so that the residual stream stands where the
//                 original's stands
class PairedStream {
 public:
  PairedStream(const ModelConfig& config, const Graph& graph, const WeightProvider& original,
               const CalibrationData& data, cpu::Isa isa, ThreadPool& pool);

  InputStats observe_inner(const Half& half, const WeightProvider& original);
  // `mixed`: the norm and the inner linears as quantized.
  InputStats observe_outer(const Half& half, const WeightProvider& original,
                           const WeightProvider& mixed);
  // `factors` [K] or null: by which the outer linear's input has since been divided.
  void advance(const Half& half, const WeightProvider& quantized, const float* factors);

  Matmul& matmul() { return matmul_; }
  // Between halves all there is to keep: the hidden states of the original and of the copy.
  std::vector<Tensor*> state() { return {&original_, &quantized_}; }

 private:
  // Calls run(window, input) for every window; input.hidden is left to it.
  template <typename Run>
  void for_windows(NodeRange range, Run&& run);
  ProgramOptions options() const;
  Observer observer_of(const ScalingGroup& group);
  // to += what a linear put out.
  void add(const float* rows, const CalibrationWindow& window, Tensor& to);

  const Graph& graph_;
  const CalibrationData& data_;
  cpu::Isa isa_;
  ThreadPool& pool_;
  Matmul matmul_;
  RopeTables rope_;
  int64_t width_;
  std::vector<CalibrationWindow> windows_;
  Tensor original_, quantized_, outer_input_;
};

}  // namespace whit
