// A range of graph nodes lowered to steps over buffers of rows: what Program runs.
//
// Linears that read one value in one format are one step over a packed stack; a norm or SiLU·mul
// writes the int8 rows that its readers want; an addition that only waits for a product is part of
// it. Buffers whose lives do not overlap are one.
#pragma once

#include <string>
#include <vector>

#include "engine/program.h"

namespace whit {

// Up to this many rows every thread computes norms and activations for itself: cheaper than a
// barrier.
inline constexpr int64_t kRedundantRows = 4;

struct LoweredRange {
  // Where a value lives: columns [column, column + width) of a buffer's rows.
  struct Place {
    int buffer = -1;
    int64_t column = 0;
  };

  // An int8 copy of a value for linears whose group sums have one size.
  struct Int8Place {
    int buffer = -1;
    int64_t k = 0, group_size = 0;
    float static_scale = 0;
  };

  // A copy of a value rounded to e4m3, as floats.
  struct RoundedPlace {
    ValueId value = -1;
    int buffer = -1;
    float static_scale = 0;
  };

  struct RowBuffer {
    int64_t width = 0;  // bytes per row for int8 places, floats otherwise
    bool redundant = false;
    Buffer data, scales, sums;
  };

  // A few channels of a value, side by side.
  struct Gathered {
    int buffer = -1;
    std::vector<int32_t> channels;
  };

  enum class StepKind {
    kEmbedding,
    kNorm,
    kQuantize,
    kRound,
    kGather,
    kLinear,
    kRope,
    kKvWrite,
    kAttention,
    kKvCommit,
    kSiluMul,
    kAdd
  };

  struct Step {
    StepKind kind;
    const Node* node = nullptr;
    std::string name;
    ValueId tap = -1;  // after this step the value is complete and is some linear's input
    int int8 = -1;     // kNorm, kQuantize, kSiluMul: output; kLinear: input. Index of an Int8Place
    bool float_output = true;  // kNorm, kSiluMul
    ValueId x = -1, y = -1, residual = -1;
    int weight = -1;  // index of packed weights, vectors
    int bias = -1;
    int gathered = -1;       // kGather: output; kLinear: input in place of x
    int rounded = -1;        // kRound: output; kLinear: input in place of x. Of RoundedPlaces
    bool redundant = false;  // may be computed by every thread for itself
    bool barrier = true;     // others read what this step wrote
  };

  std::vector<Step> steps;
  std::vector<cpu::PackedWeight> weights;
  std::vector<LinearWeight> tables;  // embedding tables, not packed
  std::vector<Tensor> vectors;       // norm weights and biases
  std::vector<Place> places;         // by ValueId; buffer −1: not materialised
  std::vector<RowBuffer> buffers;
  std::vector<Int8Place> int8_places;
  std::vector<RoundedPlace> rounded_places;
  std::vector<Gathered> gathers;
  int64_t scratch_bytes = 0;  // of one thread, whole cache lines; attention needs its own besides
  ValueId input_value = -1, output_value = -1;

  bool placed(ValueId value) const { return value >= 0 && places[value].buffer >= 0; }
};

// Weights are packed by all threads of the pool, once every step is known.
LoweredRange lower_range(const Graph& graph, NodeRange range, const WeightProvider& weights,
                         const ProgramOptions& options, ThreadPool& pool);

}  // namespace whit
