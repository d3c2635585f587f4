// Which layout integer keys get in each layer: the one that loses less of attention's output on
// held-out calibration tokens.
//
//   loss = Σ‖o − ô‖² / Σ‖o‖²,  o [T, H·Dh] with an f32 cache, ô with the integer one, both from the
//   original model's hidden states and weights
// In most families int8 keys do best per token and int4 keys per channel; where keys have biases a
// few channels are large for every token and keys per token lose what the small ones say.
// Cost: one pass of the original model over at most kKvLayoutTokens tokens, attention five times.
#pragma once

#include "calibrate/calibrator.h"

namespace whit {

inline constexpr int64_t kKvLayoutTokens = 2048;

struct KvLayerLosses {
  double token = 0, channel = 0;
};
struct KvLayouts {
  std::vector<KvLayerLosses> int8, int4;  // by layer
};

KvLayouts measure_kv_layouts(const ModelConfig& config, const Graph& graph,
                             const WeightProvider& original, const CalibrationData& data,
                             cpu::Isa isa, ThreadPool& pool, Accelerator* accelerator = nullptr);

// {"int8": {"keys": ["token", …], "losses": [[token, channel], …]}, "int4": …}
Json to_json(const KvLayouts& layouts);

}  // namespace whit
