#include "quantize/cholesky.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace whit {
namespace {

constexpr int64_t kBlock = 64;  // columns eliminated at a time
constexpr int64_t kUnit = 16;   // rows handed to a thread at a time, round robin

// The block on the diagonal, [size, size] with row stride n.
bool factor_diagonal(double* a, int64_t n, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    double* row = a + j * n;
    for (int64_t i = 0; i <= j; ++i) {
      double sum = row[i];
      for (int64_t p = 0; p < i; ++p) sum -= row[p] * a[i * n + p];
      if (i < j) {
        row[i] = sum / a[i * n + i];
      } else {
        if (!(sum > 0) || !std::isfinite(sum)) return false;
        row[i] = std::sqrt(sum);
      }
    }
  }
  return true;
}

// row[0 … size) := row · L⁻ᵀ for the factored diagonal block.
void solve_row(double* row, const double* diagonal, int64_t n, int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    double sum = row[i];
    for (int64_t p = 0; p < i; ++p) sum -= row[p] * diagonal[i * n + p];
    row[i] = sum / diagonal[i * n + i];
  }
}

// row[0 … count) −= Σ_p left[p] · panel[p][0 … count), four p at a time.
void subtract_products(double* row, const double* left, const double* panel, int64_t panel_stride,
                       int64_t size, int64_t count) {
  int64_t p = 0;
  for (; p + 4 <= size; p += 4) {
    const double a = left[p], b = left[p + 1], c = left[p + 2], d = left[p + 3];
    const double* x = panel + p * panel_stride;
    const double *y = x + panel_stride, *z = y + panel_stride, *w = z + panel_stride;
    for (int64_t j = 0; j < count; ++j) row[j] -= (a * x[j] + b * y[j]) + (c * z[j] + d * w[j]);
  }
  for (; p < size; ++p)
    for (int64_t j = 0; j < count; ++j) row[j] -= left[p] * panel[p * panel_stride + j];
}

}  // namespace

bool cholesky(double* a, int64_t n, ThreadPool& pool) {
  std::vector<double> panel(kBlock * n);  // the block's columns below the diagonal, transposed
  bool positive = true;
  for (int64_t first = 0; first < n && positive; first += kBlock) {
    const int64_t size = std::min(kBlock, n - first), below = first + size, rest = n - below;
    double* diagonal = a + first * n + first;
    positive = factor_diagonal(diagonal, n, size);
    if (!positive || rest == 0) continue;
    pool.parallel_for(rest, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double* row = a + (below + i) * n + first;
        solve_row(row, diagonal, n, size);
        for (int64_t p = 0; p < size; ++p) panel[p * rest + i] = row[p];
      }
    });
    // Later rows are longer, so threads take turns.
    pool.run([&](const Worker& worker) {
      for (int64_t tile = worker.index * kUnit; tile < rest; tile += worker.count * kUnit)
        for (int64_t i = tile; i < std::min(rest, tile + kUnit); ++i) {
          double* row = a + (below + i) * n;
          subtract_products(row + below, row + first, panel.data(), rest, size, i + 1);
        }
    });
  }
  return positive;
}

}  // namespace whit
