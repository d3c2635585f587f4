#include "kernels/cpu/limits.h"

#include <gtest/gtest.h>

namespace whit::cpu {
namespace {

TEST(Limits, peaks_are_measured_for_what_this_cpu_has_and_refused_for_the_rest) {
  ThreadPool pool(1);
  EXPECT_EQ(int8_peak(Isa::kPortable, pool), 0);
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmx}) {
    if (isa > detected_isa()) {
      EXPECT_THROW(int8_peak(isa, pool), Error) << name(isa);
      continue;
    }
    // Between a twentieth of an instruction and four a clock of 0.5 to 8 GHz.
    const double operations_a_clock = isa == Isa::kAvx2 ? 64 : isa == Isa::kAvx512 ? 128 : 2048;
    EXPECT_GT(int8_peak(isa, pool), operations_a_clock * 0.05 * 0.5e9) << name(isa);
    EXPECT_LT(int8_peak(isa, pool), operations_a_clock * 4 * 8e9) << name(isa);
  }
}

TEST(Limits, a_barrier_costs_something_but_for_one_thread) {
  ThreadPool alone(1), two(2);
  EXPECT_EQ(barrier_seconds(alone), 0);
  EXPECT_GT(barrier_seconds(two), 0);
}

TEST(Limits, the_placement_names_the_cpus) {
  EXPECT_NE(placement().find(" CPU"), std::string::npos) << placement();
}

}  // namespace
}  // namespace whit::cpu
