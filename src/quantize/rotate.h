// Rotation of the residual stream (Ashkboos et al., QuaRot, 2024, §4; Liu et al., SpinQuant, 2024):
// the same function in a basis in which activations have no outlier channels.
//
//   Q = diag(±1)·(H ⊗ C)   H Sylvester's Hadamard matrix of the largest power of two in D, C the
//                          orthogonal Hartley matrix of the odd rest; all entries about 1/√D
//   embedding E·Q · norms' weights folded into their readers and set to one (RMSNorm commutes with
//   Q then) · readers of norms W·diag(n)·Q · linears that write the residual stream Qᵀ·W, Qᵀ·b
//
// A tied table becomes two: the embedding is not scaled by the final norm, the head is.
#pragma once

#include <filesystem>
#include <vector>

#include "engine/model.h"

namespace whit {

class Rotation {
 public:
  Rotation(int64_t size, uint64_t seed);
  // row [size] := row · Q
  void apply(float* row) const;
  // row [size] := row · Qᵀ
  void undo(float* row) const;

 private:
  void mix(float* row) const;   // H ⊗ C, its own inverse: both are symmetric and orthogonal
  int64_t power_, odd_;         // size = power_ · odd_
  std::vector<float> signs_;    // [size]
  std::vector<float> hartley_;  // [odd_, odd_]
};

// Writes the rotated model as a Hugging Face directory in f32, one tensor in memory at a time.
// Throws kUnsupported for a model that is quantized already.
void write_rotated(const Model& model, const std::filesystem::path& out, uint64_t seed);

}  // namespace whit
