// Loops that the compiler must unroll before it assigns registers.
//
// Include it only with lambdas or types of an unnamed namespace as arguments, so that what is
// instantiated in a file compiled for one ISA stays in that file.
#pragma once

#include <type_traits>
#include <utility>

namespace whit::cpu {

// f(0), f(1) … f(N − 1) with constant arguments. g++ 12 unrolls plain loops only after it has
// decided which arrays live in registers, and would store every sum to the stack at each step.
template <typename F, int... I>
inline __attribute__((always_inline)) void repeat_each(const F& f,
                                                       std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
inline __attribute__((always_inline)) void repeat(const F& f) {
  repeat_each(f, std::make_integer_sequence<int, N>{});
}

}  // namespace whit::cpu
