// Whether a model is better quantized in a rotated basis (quantize/rotate.h): its first layers are
// quantized in both by the recipe that will run, one after another as in a whole run, and the rest
// stays as it is. The loss is the mean KL divergence of the model's next-token distributions on
// held-out tokens.
//
// Neither the residual stream's error behind those layers nor the divergence of layers quantized
// alone tells: a rotation spreads errors over channels that count differently, and later layers
// make up for earlier ones. Of a 135M model of 30 layers the whole rotated engine had .897 times
// the divergence, its first 6, 8, 10 layers .899, .870, .867 times, layers tried alone 1.036 times,
// and the stream behind the first 6, 8, 10 had 1.042, .997, .967 times the error.
//
// Cost: 2·kRotationTrialLayers layers quantized on a part of the data, and three passes of its
// held-out tokens through the layers behind. Memory: that of quantizing a layer, two hidden states
// of that part and an input of its linears.
#pragma once

#include "quantize/quantize.h"

namespace whit {

inline constexpr int kRotationTrialLayers = 8;
inline constexpr int64_t kRotationTrialSamples = 32;
// The share by which the rotated loss must be lower: a rotated model's tied head becomes a table of
// its own, and a smaller difference is within what other held-out tokens would say.
inline constexpr double kLeastRotationGain = 0.05;

struct RotationTrial {
  int layers = 0;                 // tried, the first ones
  double as_is = 0, rotated = 0;  // nats
  int64_t tokens = 0;             // held out

  bool pays() const { return rotated < (1 - kLeastRotationGain) * as_is; }
  std::string told() const;  // what was decided and why, a sentence
};
Json to_json(const RotationTrial& trial);

// How many layers are tried of a model with so many.
int rotation_trial_layers(int layers);

// `rotated` is `model` as write_rotated() has written it with `seed`. Throws kUnsupported where the
// recipe keeps weights in bf16.
RotationTrial try_rotation(const Model& model, const Model& rotated, uint64_t seed,
                           const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
                           ThreadPool& pool);

}  // namespace whit
