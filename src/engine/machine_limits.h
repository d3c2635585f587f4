// What this machine can do at most, as far as `whit bench` and `whit doctor` need it; measured by
// kernels/cpu/limits.h.
#pragma once

#include <string>

#include "base/json.h"
#include "kernels/cpu/table.h"

namespace whit {

struct MachineLimits {
  double read_bytes_per_s = 0;       // all threads together, from memory that no cache holds
  double int8_operations_per_s = 0;  // of all threads; 0: the ISA has no int8 multiplication
  double barrier_s = 0;              // of the pool; 0 for one thread
  std::string placement;             // of the CPUs that the process may use
};
Json to_json(const MachineLimits& limits);

// Takes a second or two.
MachineLimits measure_limits(cpu::Isa isa, ThreadPool& pool);
// The first of them alone.
double measure_read_bandwidth(ThreadPool& pool);

}  // namespace whit
