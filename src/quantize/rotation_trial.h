// Whether a model is better quantized in a rotated basis (quantize/rotate.h): a few layers, spread
// through the model, are quantized in both by the recipe that will run, each from the original's
// hidden states. The loss of a layer is the mean KL divergence of the model's next-token
// distributions on held-out tokens with that layer alone quantized: errors of the residual stream
// itself cannot be compared, since a rotation spreads them over channels that count differently.
//
// Cost: one pass of the original over a part of the data, 2·kRotationTrialLayers layers quantized
// on it, and as many passes of its held-out tokens through the layers behind. Memory: four hidden
// states of that part.
#pragma once

#include "quantize/quantize.h"

namespace whit {

inline constexpr int kRotationTrialLayers = 3;
inline constexpr int64_t kRotationTrialSamples = 32;
// The share by which the rotated loss must be lower: a rotated model's tied head becomes a table of
// its own, and a smaller difference is within what other held-out tokens would say.
inline constexpr double kLeastRotationGain = 0.05;

struct RotationTrial {
  struct Layer {
    int layer = 0;
    double as_is = 0, rotated = 0;  // nats
  };
  std::vector<Layer> layers;
  int64_t tokens = 0;  // held out

  double as_is() const;  // means over the layers
  double rotated() const;
  bool pays() const { return rotated() < (1 - kLeastRotationGain) * as_is(); }
  std::string told() const;  // what was decided and why, a sentence
};
Json to_json(const RotationTrial& trial);

// The layers that are tried of a model with so many: all of them where there are few.
std::vector<int> rotation_trial_layers(int layers);

// `rotated` is `model` as write_rotated() has written it with `seed`. Throws kUnsupported where the
// recipe keeps weights in bf16.
RotationTrial try_rotation(const Model& model, const Model& rotated, uint64_t seed,
                           const Recipe& recipe, const CalibrationData& data, cpu::Isa isa,
                           ThreadPool& pool);

}  // namespace whit
