#include "base/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>
#include <utility>

namespace whit {
namespace {

// Spinning between tasks: about 50 µs of pauses, longer than the gap between two steps of a decode loop and far shorter
// than a scheduler tick.
constexpr int kIdleSpins = 2000;

inline void cpu_relax() { __builtin_ia32_pause(); }

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  return cpus;
}

// cgroup v2 "max 100000" or "150000 100000"; no limit where it cannot be read.
double cgroup_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 1e9;
  return std::max(1.0, std::strtod(quota.c_str(), nullptr) / period);
}

}  // namespace

int available_cpus() {
  const int affinity = std::max<int>(1, static_cast<int>(allowed_cpus().size()));
  return std::max(1, std::min(affinity, static_cast<int>(std::min(cgroup_quota(), 1e6))));
}

ThreadPool::ThreadPool(int threads) : size_(threads > 0 ? threads : available_cpus()) {
  oversubscribed_ = size_ > available_cpus();
  const std::vector<int> cpus = allowed_cpus();
  for (int index = 1; index < size_; ++index) {
    threads_.emplace_back([this, index] { worker_loop(index); });
    // The caller stays free: pinning a thread that belongs to the user would outlive the pool. With as many workers as
    // CPUs the scheduler leaves it the one CPU that no worker is pinned to.
    if (!oversubscribed_ && static_cast<int>(cpus.size()) == size_) {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(cpus[index], &set);
      pthread_setaffinity_np(threads_.back().native_handle(), sizeof(set), &set);
    }
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::spin_wait(const std::atomic<uint32_t>& word, uint32_t old_value) {
  int spins = 0;
  while (word.load(std::memory_order_acquire) == old_value) {
    cpu_relax();
    // A thread that was descheduled must get the CPU back from those who wait for it.
    if (oversubscribed_ || ++spins > 20000) {
      spins = 0;
      sched_yield();
    }
  }
}

void ThreadPool::worker_loop(int index) {
  uint32_t seen = 0;
  while (true) {
    int spins = oversubscribed_ ? kIdleSpins : 0;
    while (generation_.load(std::memory_order_acquire) == seen && spins < kIdleSpins) {
      cpu_relax();
      ++spins;
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      parked_.fetch_sub(1);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    try {
      (*task_)(Worker{index, size_});
    } catch (...) {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

void ThreadPool::run(const std::function<void(const Worker&)>& task) {
  if (size_ == 1) {
    task(Worker{0, 1});
    return;
  }
  task_ = &task;
  running_.store(static_cast<uint32_t>(size_ - 1), std::memory_order_relaxed);
  bool must_wake;
  {
    std::lock_guard lock(mutex_);
    generation_.fetch_add(1, std::memory_order_release);
    must_wake = parked_.load() > 0;
  }
  if (must_wake) wake_.notify_all();
  try {
    task(Worker{0, size_});
  } catch (...) {
    std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
  while (true) {
    const uint32_t left = running_.load(std::memory_order_acquire);
    if (left == 0) break;
    spin_wait(running_, left);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::barrier() {
  if (size_ == 1) return;
  const uint32_t phase = barrier_phase_.load(std::memory_order_acquire);
  if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<uint32_t>(size_)) {
    barrier_arrived_.store(0, std::memory_order_relaxed);
    barrier_phase_.fetch_add(1, std::memory_order_release);
  } else {
    spin_wait(barrier_phase_, phase);
  }
}

void ThreadPool::parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  run([&](const Worker& worker) {
    const Range part = split(n, 1, worker);
    if (part.begin < part.end) body(part.begin, part.end);
  });
}

}  // namespace whit
