// Cholesky factorization in f64, blocked and on all threads.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace whit {

// Replaces the lower triangle of the symmetric a [n, n] by L with L·Lᵀ = a; the strict upper
// triangle is left as it was. False, with `a` in an undefined state, where a is not positive
// definite (or not finite). The result does not depend on the number of threads.
bool cholesky(double* a, int64_t n, ThreadPool& pool);

}  // namespace whit
