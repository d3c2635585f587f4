// What a change of hidden states costs at the model's output: the layers behind, and the head.
#pragma once

#include <vector>

#include "calibrate/calibrator.h"
#include "engine/model.h"

namespace whit {

// A layer over sequences of one length from their beginning, a few at a time.
class Stage {
 public:
  // Tokens of one run: bounds its activations, of which there are as many as stages.
  static constexpr int64_t kRunRows = 512;

  Stage(const Graph& graph, NodeRange range, const WeightProvider& weights, int64_t length,
        cpu::Isa isa, ThreadPool& pool);
  // hidden [rows, D], whole sequences, in place.
  void advance(float* hidden, int64_t rows, const RopeTables& rope);

 private:
  int64_t length_, sequences_, width_;
  Program program_;
  KvCache cache_;
};

// The original's head.
class HeadComparison {
 public:
  static constexpr int64_t kRows = 64;  // rows of logits at a time

  HeadComparison(const Model& model, cpu::Isa isa, ThreadPool& pool);
  // Mean KL divergence (nats) of next-token distributions from those of `exact` [rows, D], the
  // states behind the last layer: of each of the variants that are stacked in `states`.
  std::vector<double> divergences(const Tensor& exact, const Tensor& states);
  // [count, vocabulary], at most kRows.
  const float* logits(const float* states, int64_t count);

 private:
  cpu::Isa isa_;
  ThreadPool& pool_;
  int64_t vocab_;
  Program program_;
};

}  // namespace whit
