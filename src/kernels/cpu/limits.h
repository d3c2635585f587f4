// What this machine can do at most, measured: the yardsticks of `whit bench` and bench/kernels.
#pragma once

#include <string>

#include "kernels/cpu/table.h"

namespace whit::cpu {

// Bytes a second that all threads of the pool read together, from a buffer ten times the last-level
// cache (at least 512 MB, at most a quarter of the memory that is free): the median of five sweeps
// with prefetch.
double cold_read_bandwidth(ThreadPool& pool);

// int8 operations a second (a multiplication and an addition are two) of all threads together, at
// the rate of the ISA's multiply instruction alone, operands in registers: the best of five. AVX2
// vpmaddubsw (whose int16 sums cost further instructions: no kernel reaches it), AVX-512 vpdpbusd,
// AMX tdpbssd on four accumulators in turn. 0 for kPortable. Throws kUnsupported where this CPU has
// no such instruction.
double int8_peak(Isa isa, ThreadPool& pool);

// Seconds that a barrier of the pool takes when all threads come at once: the median of five times
// a thousand; 0 for one thread.
double barrier_seconds(ThreadPool& pool);

// How the CPUs that this process may use lie: "2 CPUs, one shared L3 of 32 MB", "4 CPUs on 2 cores,
// 2 L3 of 16 MB". What the system does not tell is left out.
std::string placement();

}  // namespace whit::cpu
