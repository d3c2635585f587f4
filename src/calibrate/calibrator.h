// Calibration data flowing through a model layer by layer: one layer's weights and one window of
// activations are resident, beside the hidden states of all samples ([samples · length, D] f32).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/accelerator.h"
#include "engine/program.h"
#include "models/model_config.h"
#include "tokenizer/tokenizer.h"

namespace whit {

// Token sequences of one length, and where they came from.
struct CalibrationData {
  std::vector<int32_t> ids;  // [samples, length]
  int64_t samples = 0, length = 0;
  std::string source;  // "self", or the file's name
  uint64_t seed = 0;
  // Of a mixture, by part: source, weight, samples, tokens (that the source has).
  Json parts = Json::array();
  std::vector<std::string> warnings;  // a part shorter than its share, …
  std::string digest() const;         // of the ids
  // What an engine records of it: source, samples, length, seed, digest, parts.
  Json description() const;
};

// `samples` blocks of `length` tokens, evenly spread over the whole blocks of `ids` (all of them
// where there are fewer). Throws kInvalidArgument where there is less than one block.
CalibrationData calibration_from_tokens(std::span<const int32_t> ids, std::string source,
                                        int64_t samples, int64_t length);
// Parts of one length in one: their sequences take turns in proportion to their number, so that
// search and held-out windows see all of them.
CalibrationData mix_calibration(std::span<const CalibrationData> parts);

// `samples` blocks of `length` tokens, evenly spread over the text's whole blocks (all of them
// where there are fewer). Throws kInvalidArgument where the text gives less than one block.
CalibrationData calibration_from_text(const Tokenizer& tokenizer, std::string_view text,
                                      std::string source, int64_t samples, int64_t length);

// The sequences that run through a layer together: enough rows for the matrix products to be
// efficient, few enough that activations stay small (a few tens of MB for a 1B model). Every eighth
// window is held out.
struct CalibrationWindow {
  int64_t first, count, rows;  // sequences, and their tokens
  Split split;
};
std::vector<CalibrationWindow> calibration_windows(const CalibrationData& data);
// Rows of the windows of one split.
int64_t rows_of(std::span<const CalibrationWindow> windows, Split split);

// What the first layer reads, [samples · length, D]. Throws kInvalidData for an unknown token.
Tensor embed(const Graph& graph, const WeightProvider& original, const CalibrationData& data,
             cpu::Isa isa, ThreadPool& pool);

// The accelerator's pass over a layer, or, where that is null, the CPU's.
std::unique_ptr<LayerPass> make_layer_pass(const Graph& graph, NodeRange range,
                                           const WeightProvider& weights, const RopeTables& rope,
                                           const LayerPassOptions& options, Matmul& matmul,
                                           cpu::Isa isa, Accelerator* accelerator);

class LayerStream {
 public:
  // `accelerator`: runs layers of floating-point weights in place of the CPU; may be null.
  LayerStream(const ModelConfig& config, const Graph& graph, const WeightProvider& original,
              const CalibrationData& data, cpu::Isa isa, ThreadPool& pool,
              Accelerator* accelerator = nullptr);

  // Runs decoder layer `layer` with its original weights over the current hidden states and gathers
  // the statistics of its linears' inputs. `advance` makes the layer's outputs the hidden states of
  // the next.
  using Advance = LayerPass::Advance;
  std::vector<InputStats> observe(int layer, const WeightProvider& weights, Advance advance);
  // The same before means are taken (Observer::take_sums).
  std::vector<InputStats> observe_sums(int layer, const WeightProvider& weights, Advance advance);
  // Advances the hidden states through the layer with other weights, on the CPU: they may be of any
  // format.
  void advance(int layer, const WeightProvider& weights);

  Matmul& matmul() { return matmul_; }
  cpu::Isa isa() const { return isa_; }
  // Between layers all there is to keep: the hidden states that the next one reads.
  std::vector<Tensor*> state() { return {&hidden_}; }

 private:
  std::unique_ptr<LayerPass> make_pass(int layer, const WeightProvider& weights,
                                       Accelerator* accelerator, bool observe);
  void run(LayerPass& pass, Advance advance);
  const Graph& graph_;
  const CalibrationData& data_;
  cpu::Isa isa_;
  ThreadPool& pool_;
  Accelerator* accelerator_;
  Matmul matmul_;
  RopeTables rope_;
  int64_t width_;
  std::vector<CalibrationWindow> windows_;
  Tensor hidden_;
};

}  // namespace whit
