// Squared output errors of rows d under an input's Gram matrix: d·A·dᵀ for a symmetric positive
// semidefinite A [K, K], exactly or as an estimate that is good enough to rank candidates.
#pragma once

#include <vector>

#include "calibrate/accelerator.h"
#include "tensor/tensor.h"

namespace whit {

class QuadraticForm {
 public:
  // Of both triangles of `a` [K, K] the lower one is read.
  QuadraticForm(const Tensor& a, Matmul& matmul);

  // d·A·dᵀ by row of d [N, K]: products with the blocks on and below the diagonal alone, those
  // below counted twice; about half the cost of d·A.
  std::vector<double> rows(const Tensor& d) const;
  // The sum of rows().
  double total(const Tensor& d) const;

 private:
  struct Block {
    int64_t first;             // of its columns
    cpu::PackedWeight weight;  // [columns, first + columns], off-diagonal entries doubled
  };
  Matmul& matmul_;
  std::vector<Block> blocks_;
  mutable Tensor product_;
};

// The first columns L [K, rank] of A's pivoted Cholesky factorization (Harbrecht, Peters and
// Schneider 2012) and the diagonal r ≥ 0 of what they leave: A ≈ L·Lᵀ + diag(r). Rounding errors of
// different weights are nearly uncorrelated, so what is neglected averages to nothing.
CholeskyColumns cholesky_columns(const Tensor& a);

// The same sums under that.
class QuadraticEstimate {
 public:
  QuadraticEstimate(CholeskyColumns columns, Matmul& matmul);
  // Over all rows of d [N, K].
  double total(const Tensor& d) const;

 private:
  Matmul& matmul_;
  cpu::PackedWeight factor_;  // Lᵀ
  std::vector<float> rest_;   // r
  mutable Tensor product_;
};

}  // namespace whit
