// The metric of error-compensated rounding: for a linear y = W·x the squared output error of a
// rounding Q is tr((W−Q)·H·(W−Q)ᵀ) with H = E[x·xᵀ], the Hessian of that error by a weight row.
//
// Columns are rounded one after another, those with the most energetic inputs first. With H = V·Vᵀ,
// V upper triangular in that order, the error of a row is Σ_i V_ii²·(d_i + Σ_{j<i} M_ij·d_j)²,
// where d = w − q and M_ij = V_ji/V_ii: rounding w_i + Σ_{j<i} M_ij·d_j instead of w_i makes each
// term as small as the grid allows, which is what GPTQ does (Frantar et al., ICLR 2023), through H
// itself instead of through its inverse.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "calibrate/matmul.h"
#include "tensor/tensor.h"

namespace whit {

class Hessian {
 public:
  static constexpr double kDamping = 0.01;  // of the mean energy of a channel
  static constexpr int64_t kBlock = 128;    // columns between two products with all rounded ones

  // gram [K, K]: E[x·xᵀ]. noise: the variance that rounding the activations adds to every channel.
  // kDamping of the mean energy is added to the diagonal (channels that are always zero stay
  // harmless), ten times as much while the factorization fails.
  Hessian(const Tensor& gram, double noise, Matmul& matmul);

  // False where no damping made the matrix positive definite: round to nearest then.
  bool factored() const { return factored_; }
  // What a reader should know: raised damping, or the failure. Mostly empty.
  const std::string& note() const { return note_; }

  int64_t k() const { return k_; }
  // H with noise and damping, [K, K] in the order of storage.
  const float* row(int64_t channel) const { return matrix_.data<float>() + channel * k_; }
  // Rows [i·kBlock, …) of H as a right-hand side: residual · block(i) is those channels' gradient.
  const cpu::PackedWeight& block(int64_t index) const { return blocks_[index]; }
  int64_t blocks() const { return ceil_div(k_, kBlock); }

  // The order of rounding: order()[i] is the channel that is rounded i-th.
  std::span<const int64_t> order() const { return order_; }
  // M for the i-th block of the order: against all columns before the block (none for i = 0) …
  const cpu::PackedWeight& feedback(int64_t index) const { return feedback_[index]; }
  // … and within it: column j of M below the diagonal, [kBlock] from row j on.
  const float* feedback_within(int64_t index, int64_t column) const {
    return within_.data<float>() + (index * kBlock + column) * kBlock;
  }
  // V_ii² by channel, in the order of storage: what an error of the compensated channel costs.
  std::span<const float> conditional() const { return conditional_; }

 private:
  bool factor(double damping, Matmul& matmul);

  int64_t k_;
  bool factored_ = false;
  std::string note_;
  Tensor matrix_, within_;
  std::vector<int64_t> order_;
  std::vector<cpu::PackedWeight> blocks_, feedback_;
  std::vector<float> conditional_;
};

}  // namespace whit
