// Arithmetic on sizes that come from files: overflow is an error, never a wrap-around.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace whit {

// a * b and a + b as unsigned 64-bit; throws kInvalidData naming `what` on overflow.
inline uint64_t checked_mul(uint64_t a, uint64_t b, std::string_view what) {
  uint64_t result;
  if (__builtin_mul_overflow(a, b, &result))
    throw Error(ErrorKind::kInvalidData, "{}: size overflows ({} x {})", what, a, b);
  return result;
}
inline uint64_t checked_add(uint64_t a, uint64_t b, std::string_view what) {
  uint64_t result;
  if (__builtin_add_overflow(a, b, &result))
    throw Error(ErrorKind::kInvalidData, "{}: size overflows ({} + {})", what, a, b);
  return result;
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace whit
