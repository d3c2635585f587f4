// What calibration and the searches of quantization spend their time on, behind interfaces: the
// forward pass of a layer with the sums over its linears' inputs, and the rounding errors of a
// scaling group's linears. The CPU's implementations are in calibrator.cc and
// quantize/cpu_group_errors.cc; an Accelerator makes those of a GPU. What is decided with their
// results is written once, above them.
//
// Implementations round to the same bits and differ in the order of their sums alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "calibrate/observer.h"
#include "engine/program.h"
#include "quant/scheme.h"

namespace whit {

// One decoder layer, run over windows of sequences.
class LayerPass {
 public:
  virtual ~LayerPass() = default;
  // hidden [rows, D] in host memory: what the layer reads and, where it is to advance, what it has
  // put out. Where the pass observes, inputs of linears are summed under `split`.
  enum class Advance { kNo, kYes };
  virtual void run(float* hidden, int64_t rows, Split split, Advance advance) = 0;
  // As Observer::take_sums: ends the observation.
  virtual std::vector<InputStats> take_sums() = 0;
};

struct LayerPassOptions {
  int64_t max_rows = 0, length = 0;  // of a window, of its sequences
  // Values whose sums are taken; none: the pass does not observe.
  std::vector<ScalingGroup> observed = {};
  int64_t expected_search_rows = 0, expected_held_out_rows = 0;
};

// A ≈ L·Lᵀ + diag(rest): the first columns of a pivoted Cholesky factorization.
struct CholeskyColumns {
  Tensor factor;            // Lᵀ [rank, K]
  std::vector<float> rest;  // [K]
};

// What a group's rounding errors are measured with. All of it outlives the GroupErrors.
struct GroupErrorsInput {
  std::vector<const Tensor*> weights;  // f32 [N, K] of each linear
  const InputStats* stats = nullptr;
  const float* applied = nullptr;             // [K] or null: by which inputs are divided
  QuantArgs args;                             // of round() and search_bounds(); unused otherwise
  NumberType activations = NumberType::kInt;  // what Q8 rounds them to
};

// One candidate at a time: a linear's rounded weight, then its error, and sums of them. A linear is
// its index in GroupErrorsInput::weights; s [K] or null are factors of the candidate.
class GroupErrors {
 public:
  virtual ~GroupErrors() = default;
  // The candidate becomes Q(W·s); clip [N, G] bounds of |w|, or null.
  virtual void round(size_t linear, const float* s, const Tensor* clip) = 0;
  // The candidate becomes what W·s was rounded to by others; `values` may be overwritten.
  virtual void take(size_t linear, Tensor& values) = 0;
  // Of a rounded candidate: E‖Q(W·s)·(Q8(x/s) − x/s)‖² over the split's sampled rows.
  // static_scale > 0: of per-tensor static activations.
  virtual double activation_error(Split split, size_t linear, const float* s,
                                  float static_scale) = 0;
  // E[(Q8(x/s) − x/s)²] by channel over the first `rows` sampled rows of the search split, for
  // noise_error: Σ noise·Q(W·s)².
  virtual void measure_noise(int64_t rows, const float* s, float static_scale) = 0;
  virtual double noise_error(size_t linear) = 0;
  // The candidate becomes its error d = Q(W·s)/s − W.
  virtual void subtract(size_t linear, const float* s) = 0;
  // Σ d·A·dᵀ over the error's rows, A = E[x·xᵀ] of a split.
  virtual double quadratic(Split split, size_t linear) = 0;
  // The same of W itself.
  virtual double energy(Split split, size_t linear) = 0;
  // Σ d·(L·Lᵀ + diag(rest))·dᵀ for the columns given before.
  virtual void set_columns(CholeskyColumns columns) = 0;
  virtual double estimate(size_t linear) = 0;
  // Largest |w| of each input channel over all linears.
  virtual std::vector<float> max_abs_weight() = 0;
  // Bounds [N, G] of |w| by which each row and group of W alone has the least d·A·dᵀ of the search
  // split, among these shares of its largest magnitude, in falling order from 1.
  struct Bounds {
    Tensor values;
    int64_t shrunk = 0;  // of them, below the largest magnitude
  };
  virtual Bounds search_bounds(size_t linear, std::span<const float> shares) = 0;
  // The same for scales of two levels, where a range is its group's multiple of the row's step: of
  // each row the step, of these shares of the least one that holds all groups, and for it the
  // multiples of least error, down to kLeastMultiple of the exact one. Groups keep the zero points
  // of plain rounding.
  static constexpr float kLeastMultiple = 1.0f - 0.03f * 15;
  struct TwoLevelScales {
    std::vector<float> step, scale, lowest;  // [N], [N, G], [N, G] lowest codes
    int64_t shrunk = 0;                      // scales below those of plain rounding
  };
  virtual TwoLevelScales search_two_level(size_t linear, std::span<const float> shares) = 0;
  // A of the search split [K, K], in host memory.
  virtual const Tensor& gram() = 0;
};

class Accelerator {
 public:
  virtual ~Accelerator() = default;
  virtual std::string description() const = 0;
  // Most device memory in use so far.
  virtual int64_t peak_bytes() const = 0;
  virtual std::unique_ptr<LayerPass> layer_pass(const Graph& graph, NodeRange range,
                                                const WeightProvider& weights,
                                                const RopeTables& rope,
                                                const LayerPassOptions& options) = 0;
  virtual std::unique_ptr<GroupErrors> group_errors(const GroupErrorsInput& input) = 0;
};

// On the process's first GPU. Throws kUnsupported, naming what is missing.
std::unique_ptr<Accelerator> open_cuda_accelerator(ThreadPool& pool);

}  // namespace whit
