// How much each part of a model loses to each number format: the basis of mixed precision.
//
// For one scaling group after another (linears that share an input, and so a kernel launch) and for
// every candidate scheme, that group alone is quantized, by compensated rounding under the
// statistics of its original inputs, and the rest of the model stays as it is. The candidate's
// contribution is the mean KL divergence of the model's next-token distributions from the
// original's over held-out tokens. Contributions of different groups are nearly additive: each is a
// quadratic form of a small perturbation, and the perturbations are independent.
//
// Cost: groups · candidates · (tokens through the layers behind, and through the head). Memory:
// the model in f32, and candidates · 4 · tokens hidden states.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "calibrate/calibrator.h"
#include "engine/model.h"
#include "quantize/layer.h"

namespace whit {

struct SchemeCost {
  QuantScheme scheme;
  double bits = 0;     // stored for the group, scales and zero points included
  double kld = 0;      // nats, of the group in this scheme alone
  double seconds = 0;  // of the group's product for one token; 0 where not measured
};

struct GroupSensitivity {
  std::string name;
  int layer = 0;
  std::vector<NodeId> linears;
  int64_t weights = 0;
  std::vector<SchemeCost> candidates;
  std::string note;  // where the candidates were rounded to nearest: why
};
Json to_json(const GroupSensitivity& group);

// {int4 in groups of 128, 64, 32, int8, bf16}; `int8_activations`: beside all but bf16.
std::vector<QuantScheme> mixed_candidates(bool int8_activations, bool symmetric);

// Bits that a weight [n, k] takes in an engine directory.
double stored_bits(const QuantScheme& scheme, int64_t n, int64_t k);

// At most `samples` of the data's sequences, evenly spread over them.
CalibrationData evenly_spread(const CalibrationData& data, int64_t samples);

class SensitivityStudy {
 public:
  // Takes up to `tokens` of the held-out part of `data` for the divergence and up to `samples` of
  // its samples for the statistics, and runs the original once, which also tells how long the
  // study will take. `model`, `data` and `pool` must outlive the study.
  SensitivityStudy(const Model& model, const CalibrationData& data, int64_t tokens, int64_t samples,
                   std::vector<QuantScheme> candidates, cpu::Isa isa, ThreadPool& pool);
  ~SensitivityStudy();

  int64_t tokens() const;           // that divergences are measured on
  double expected_seconds() const;  // of run(), from the speed of the original's pass
  std::vector<GroupSensitivity> run();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whit
