// What a machine lacks for the CUDA backend, as errors that say what to do; apart from device.cu,
// so that they are tested where there is neither GPU nor toolkit.
#pragma once

#include <cstdint>
#include <string>

namespace whit::cuda {

[[noreturn]] void throw_no_gpu(const std::string& reason);
// Versions as the CUDA runtime counts them: 1000 · major + 10 · minor.
[[noreturn]] void throw_old_driver(int supported, int needed);
[[noreturn]] void throw_old_gpu(const std::string& name, int major, int minor);
[[noreturn]] void throw_no_memory(const std::string& name, const std::string& purpose,
                                  int64_t bytes, int64_t free, int64_t total);
[[noreturn]] void throw_failure(const std::string& doing, const std::string& problem);

}  // namespace whit::cuda
