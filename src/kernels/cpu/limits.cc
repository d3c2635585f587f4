#include "kernels/cpu/limits.h"

#include <fmt/format.h>
#include <immintrin.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <set>
#include <vector>

namespace whit::cpu {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<double> five_times(const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) seconds.push_back(seconds_of(work));
  std::sort(seconds.begin(), seconds.end());
  return seconds;
}

// Instructions in one go: enough independent ones to hide their latency.
constexpr int64_t kRounds = 200'000;

// 12 results a round; none depends on another.
__attribute__((target("avx2"))) void avx2_rounds() {
  for (int64_t i = 0; i < kRounds; ++i)
    __asm__ volatile(
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm0\n vpmaddubsw %%ymm12, %%ymm13, %%ymm1\n"
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm2\n vpmaddubsw %%ymm12, %%ymm13, %%ymm3\n"
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm4\n vpmaddubsw %%ymm12, %%ymm13, %%ymm5\n"
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm6\n vpmaddubsw %%ymm12, %%ymm13, %%ymm7\n"
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm8\n vpmaddubsw %%ymm12, %%ymm13, %%ymm9\n"
        "vpmaddubsw %%ymm12, %%ymm13, %%ymm10\n vpmaddubsw %%ymm12, %%ymm13, %%ymm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
}
constexpr double kAvx2Operations = 12.0 * 64;

// 12 accumulators a round.
__attribute__((target("avx512f,avx512vnni"))) void avx512_rounds() {
  for (int64_t i = 0; i < kRounds; ++i)
    __asm__ volatile(
        "vpdpbusd %%zmm12, %%zmm13, %%zmm0\n vpdpbusd %%zmm12, %%zmm13, %%zmm1\n"
        "vpdpbusd %%zmm12, %%zmm13, %%zmm2\n vpdpbusd %%zmm12, %%zmm13, %%zmm3\n"
        "vpdpbusd %%zmm12, %%zmm13, %%zmm4\n vpdpbusd %%zmm12, %%zmm13, %%zmm5\n"
        "vpdpbusd %%zmm12, %%zmm13, %%zmm6\n vpdpbusd %%zmm12, %%zmm13, %%zmm7\n"
        "vpdpbusd %%zmm12, %%zmm13, %%zmm8\n vpdpbusd %%zmm12, %%zmm13, %%zmm9\n"
        "vpdpbusd %%zmm12, %%zmm13, %%zmm10\n vpdpbusd %%zmm12, %%zmm13, %%zmm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
}
constexpr double kAvx512Operations = 12.0 * 128;

// Four accumulators in turn, and no more than two tiles of operands: on shared machines eight tiles
// in use are often at half the rate of six (kernels/cpu/amx/tiles.h, docs/cpu.md). Operands are not
// zero: the unit's rate with zeros may be more than its power allows with data.
__attribute__((target("amx-tile,amx-int8"))) void amx_rounds() {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  alignas(64) uint8_t data[2 * 1024];
  for (size_t i = 0; i < sizeof(data); ++i) data[i] = static_cast<uint8_t>(i * 2654435761u >> 13);
  // g++'s intrinsics do not say that they read all of this.
  __asm__ volatile("ldtilecfg %0" : : "m"(config));
  __asm__ volatile("" : : "m"(data) : "memory");
  _tile_loadd(4, data, 64);
  _tile_loadd(5, data + 1024, 64);
  for (int64_t i = 0; i < kRounds; ++i) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_release();
}
constexpr double kAmxOperations = 4.0 * 2 * 16 * 16 * 64;

std::string read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string cpu_path(int cpu) { return fmt::format("/sys/devices/system/cpu/cpu{}/", cpu); }

// Bytes of the last-level cache of a CPU and the CPUs that share it; 0 where unknown.
int64_t last_level_cache(int cpu, std::string* shared_by) {
  for (int index = 4; index >= 2; --index) {
    const std::string path = cpu_path(cpu) + fmt::format("cache/index{}/", index);
    const std::string size = read_line(path + "size");  // "32768K"
    if (size.empty()) continue;
    const int64_t value = std::strtoll(size.c_str(), nullptr, 10);
    const char unit = size.back();
    if (value <= 0) continue;
    if (shared_by != nullptr) *shared_by = read_line(path + "shared_cpu_list");
    return value << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);
  }
  return 0;
}

std::vector<int> usable_cpus() {
  std::vector<int> cpus;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

// Of all last-level caches that the usable CPUs have.
int64_t total_last_level_bytes(std::set<std::string>* caches) {
  int64_t total = 0;
  std::set<std::string> seen;
  for (const int cpu : usable_cpus()) {
    std::string shared_by;
    const int64_t bytes = last_level_cache(cpu, &shared_by);
    if (bytes > 0 && seen.insert(shared_by).second) total += bytes;
  }
  if (caches != nullptr) *caches = std::move(seen);
  return total;
}

}  // namespace

double cold_read_bandwidth(ThreadPool& pool) {
  constexpr int64_t kLeast = int64_t{512} << 20;
  const int64_t available = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  const int64_t wanted = std::max(kLeast, 10 * total_last_level_bytes(nullptr));
  const int64_t bytes = std::max(kLeast, std::min(wanted, available / 4)) / 64 * 64;
  Buffer buffer(bytes);
  pool.parallel_for(bytes / 64, [&](int64_t begin, int64_t end) {
    std::memset(buffer.as<char>() + 64 * begin, 1, 64 * (end - begin));
  });
  std::atomic<uint64_t> sink{0};
  const std::vector<double> seconds = five_times([&] {
    pool.parallel_for(bytes / 64, [&](int64_t begin, int64_t end) {
      const uint64_t* words = buffer.as<uint64_t>();
      uint64_t sums[8] = {};
      for (int64_t i = 8 * begin; i < 8 * end; i += 8) {
        __builtin_prefetch(words + i + 1024);
        for (int lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
      }
      for (const uint64_t sum : sums) sink += sum;
    });
  });
  return static_cast<double>(bytes) / seconds[2];
}

double int8_peak(Isa isa, ThreadPool& pool) {
  if (isa > detected_isa())
    throw Error(ErrorKind::kUnsupported, "this CPU has no {}: its peak cannot be measured",
                name(isa));
  struct Rounds {
    void (*run)();
    double operations;
  };
  static constexpr Rounds kOf[] = {{nullptr, 0},
                                   {avx2_rounds, kAvx2Operations},
                                   {avx512_rounds, kAvx512Operations},
                                   {amx_rounds, kAmxOperations}};
  const Rounds& rounds = kOf[static_cast<int>(isa)];
  if (rounds.run == nullptr) return 0;
  const std::vector<double> seconds =
      five_times([&] { pool.run([&](const Worker&) { rounds.run(); }); });
  return static_cast<double>(kRounds) * rounds.operations * pool.size() / seconds[0];
}

double barrier_seconds(ThreadPool& pool) {
  if (pool.size() == 1) return 0;
  constexpr int kBarriers = 1000;
  const std::vector<double> seconds = five_times([&] {
    pool.run([&](const Worker&) {
      for (int i = 0; i < kBarriers; ++i) pool.barrier();
    });
  });
  return seconds[2] / kBarriers;
}

std::string placement() {
  const std::vector<int> cpus = usable_cpus();
  std::set<std::string> cores, caches;
  for (const int cpu : cpus)
    cores.insert(read_line(cpu_path(cpu) + "topology/thread_siblings_list"));
  const int64_t bytes = total_last_level_bytes(&caches);
  std::string text = fmt::format("{} CPU{}", cpus.size(), cpus.size() == 1 ? "" : "s");
  if (!cores.contains("") && cores.size() < cpus.size())
    text += fmt::format(" on {} core{}", cores.size(), cores.size() == 1 ? "" : "s");
  if (bytes > 0)
    text += fmt::format(", {} of {} MB",
                        caches.size() == 1 ? "one last-level cache"
                                           : fmt::format("{} last-level caches", caches.size()),
                        (bytes / static_cast<int64_t>(caches.size())) >> 20);
  return text;
}

}  // namespace whit::cpu
