// Whether a model is better quantized in a rotated basis (quantize/rotate.h): it is quantized in
// both on a part of the data by the recipe that will run. The loss is the mean KL divergence of the
// model's next-token distributions on held-out tokens.
//
// All layers, since fewer do not tell: a rotation spreads errors over channels that count
// differently, and later layers make up for earlier ones. Of a 135M model of 30 layers the rotated
// engine had .90 times the divergence; a trial of all layers on 16 samples said .898; of three
// layers alone 1.036; of the first eight in sequence .913 on 16 samples and 1.069 on 32; and the
// residual stream behind the first 6, 8, 10 had 1.042, .997, .967 times the error.
//
// Cost: twice the quantization on kRotationTrialSamples samples. Memory: that of quantizing a
// layer, two hidden states of that part and an input of its linears.
#pragma once

#include "quantize/quantize.h"

namespace whit {

inline constexpr int64_t kRotationTrialSamples = 16;
// The share by which the rotated loss must be lower: a rotated model's tied head becomes a table of
// its own, and a smaller difference is within what other held-out tokens would say.
inline constexpr double kLeastRotationGain = 0.05;

struct RotationTrial {
  double as_is = 0, rotated = 0;  // nats
  int64_t tokens = 0;             // held out

  bool pays() const { return rotated < (1 - kLeastRotationGain) * as_is; }
  std::string told() const;  // what was decided and why, a sentence
};
Json to_json(const RotationTrial& trial);

// `rotated` is `model` as write_rotated() has written it with `seed`. Throws kUnsupported where the
// recipe keeps weights in bf16.
RotationTrial try_rotation(const Model& model, const Model& rotated, uint64_t seed,
                           const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
                           ThreadPool& pool);

}  // namespace whit
