#include "engine/machine_limits.h"

#include "kernels/cpu/limits.h"

namespace whit {

Json to_json(const MachineLimits& limits) {
  return {{"read_bytes_per_s", limits.read_bytes_per_s},
          {"int8_operations_per_s", limits.int8_operations_per_s},
          {"barrier_s", limits.barrier_s},
          {"placement", limits.placement}};
}

MachineLimits measure_limits(cpu::Isa isa, ThreadPool& pool) {
  return {.read_bytes_per_s = cpu::cold_read_bandwidth(pool),
          .int8_operations_per_s = cpu::int8_peak(isa, pool),
          .barrier_s = cpu::barrier_seconds(pool),
          .placement = cpu::placement()};
}

double measure_read_bandwidth(ThreadPool& pool) { return cpu::cold_read_bandwidth(pool); }

}  // namespace whit
