#include "base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace whit {
namespace {

// Spinning between tasks: longer than the gap between two steps of a decode loop and far shorter
// than a scheduler tick.
constexpr std::chrono::microseconds kIdleSpin{50};
// Spinning inside a task before sleeping: about twice what sleeping and being woken costs, and
// several times the imbalance of evenly divided work. Who is still awaited then was probably
// descheduled, and gets the CPU back sooner when those who wait for it leave theirs.
constexpr std::chrono::microseconds kTaskSpin{50};
// With fewer CPUs than threads whoever is awaited is probably not running.
constexpr std::chrono::microseconds kOversubscribedSpin{2};
// Sleeps inside one task after which the CPUs count as shared with other work: from then on the
// scheduler may move the workers, which it cannot while each is bound to a CPU that may be another
// process's too.
constexpr uint32_t kSleepsBeforeUnpinning = 4;

inline void cpu_relax() { __builtin_ia32_pause(); }

// Returns true as soon as done() is, false when `limit` has passed.
template <typename Done>
bool spin_until(std::chrono::microseconds limit, const Done& done) {
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    for (int i = 0; i < 32; ++i) {
      if (done()) return true;
      cpu_relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// Sleeps while word == value, at the most until somebody calls futex_wake.
void futex_wait(const std::atomic<uint32_t>& word, uint32_t value) {
  static_assert(sizeof(std::atomic<uint32_t>) == 4);
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void futex_wake(const std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Thrown by barrier() when another thread's task has failed; run() never lets it out, because the
// failure that caused it was recorded before.
struct OtherThreadFailed {};

std::vector<int> allowed_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  } else {  // more CPUs than cpu_set_t can name
    cpus.resize(std::max(1u, std::thread::hardware_concurrency()));
    for (size_t i = 0; i < cpus.size(); ++i) cpus[i] = static_cast<int>(i);
  }
  return cpus;
}

std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// quota / period in CPUs; infinity for "max", −1 and whatever is no number.
double quota_of(const std::string& quota, const std::string& period) {
  const double q = std::strtod(quota.c_str(), nullptr), p = std::strtod(period.c_str(), nullptr);
  return q > 0 && p > 0 ? q / p : std::numeric_limits<double>::infinity();
}

double quota_of_group(const std::filesystem::path& group) {
  const std::string cpu_max = read_text(group / "cpu.max");  // v2: "max 100000" or "150000 100000"
  const size_t space = cpu_max.find(' ');
  if (space != std::string::npos)
    return quota_of(cpu_max.substr(0, space), cpu_max.substr(space + 1));
  return quota_of(read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us"));
}

}  // namespace

double cgroup_cpu_quota(const std::filesystem::path& root, std::string_view self_cgroup) {
  double least = std::numeric_limits<double>::infinity();
  while (!self_cgroup.empty()) {
    const std::string_view line = self_cgroup.substr(0, self_cgroup.find('\n'));
    self_cgroup.remove_prefix(std::min(self_cgroup.size(), line.size() + 1));
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string_view::npos || second == std::string_view::npos) continue;
    const std::string controllers =
        "," + std::string(line.substr(first + 1, second - first - 1)) + ",";
    std::filesystem::path mount = root;
    if (controllers == ",,") {
      // v2, mounted at the root
    } else if (controllers.find(",cpu,") != std::string::npos) {
      mount /= "cpu";
    } else {
      continue;
    }
    // Inside a container the path may name a group outside of what is mounted; its files are then
    // missing, and those of the mount's own root hold the container's quota.
    std::filesystem::path group =
        std::filesystem::path(line.substr(second + 1)).relative_path().lexically_normal();
    while (true) {
      least = std::min(least, quota_of_group(mount / group));
      if (group.empty()) break;
      group = group.has_parent_path() ? group.parent_path() : std::filesystem::path();
    }
  }
  return least;
}

int available_cpus() {
  const double affinity = static_cast<double>(allowed_cpus().size());
  const double quota = cgroup_cpu_quota("/sys/fs/cgroup", read_text("/proc/self/cgroup"));
  return std::max(1, static_cast<int>(std::min(affinity, quota)));
}

ThreadPool::ThreadPool(int threads)
    : size_(threads == 0 ? std::min(available_cpus(), kMaxThreads) : threads) {
  if (size_ < 1 || size_ > kMaxThreads)
    throw Error(ErrorKind::kInvalidArgument,
                "{} threads wanted; choose 1 to {}, or 0 for one per CPU", threads, kMaxThreads);
  oversubscribed_ = size_ > available_cpus();
  threads_.reserve(size_ - 1);
  for (int index = 1; index < size_; ++index) {
    try {
      threads_.emplace_back([this, index] { worker_loop(index); });
    } catch (const std::system_error& error) {
      stop_and_join();
      throw Error(ErrorKind::kResource, "cannot start thread {} of {}: {}; ask for fewer threads",
                  index + 1, size_, error.what());
    }
  }
  pin();
}

ThreadPool::~ThreadPool() { stop_and_join(); }

void ThreadPool::stop_and_join() {
  {
    std::lock_guard lock(mutex_);
    stop_.store(true);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::wait_while_equal(const std::atomic<uint32_t>& word, uint32_t value) {
  const auto changed = [&] { return word.load(std::memory_order_acquire) != value; };
  if (spin_until(oversubscribed_ ? kOversubscribedSpin : kTaskSpin, changed)) return;
  // Sequentially consistent, as is notify: either the sleeper is seen there, or the change here.
  sleepers_.fetch_add(1);
  while (word.load() == value) futex_wait(word, value);
  sleepers_.fetch_sub(1);
  if (sleeps_.fetch_add(1, std::memory_order_relaxed) + 1 == kSleepsBeforeUnpinning) unpin();
}

void ThreadPool::notify(const std::atomic<uint32_t>& word) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (sleepers_.load() > 0) futex_wake(word);
}

void ThreadPool::pin() {
  const std::vector<int> cpus = allowed_cpus();
  // The caller stays free: pinning a thread that belongs to the user would outlive the pool. With
  // as many workers as CPUs the scheduler leaves it the one CPU that no worker is pinned to.
  if (oversubscribed_ || static_cast<int>(cpus.size()) != size_) return;
  CPU_ZERO(&allowed_);
  for (const int cpu : cpus) CPU_SET(cpu, &allowed_);
  for (int index = 1; index < size_; ++index) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus[index], &set);
    pthread_setaffinity_np(threads_[index - 1].native_handle(), sizeof(set), &set);
  }
  pinned_.store(true);
}

void ThreadPool::unpin() {
  if (!pinned_.exchange(false)) return;
  for (std::thread& thread : threads_)
    pthread_setaffinity_np(thread.native_handle(), sizeof(allowed_), &allowed_);
}

void ThreadPool::run_part(int index) {
  try {
    (*task_)(Worker{index, size_});
  } catch (...) {
    {
      std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    failed_.store(true, std::memory_order_release);
    barrier_phase_.fetch_add(1, std::memory_order_release);
    notify(barrier_phase_);
  }
}

void ThreadPool::worker_loop(int index) {
  uint32_t seen = 0;
  while (true) {
    const auto called = [&] { return generation_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(oversubscribed_ ? kOversubscribedSpin : kIdleSpin, called)) {
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return generation_.load() != seen; });
      parked_.fetch_sub(1);
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    run_part(index);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) notify(running_);
  }
}

void ThreadPool::run(const std::function<void(const Worker&)>& task) {
  if (active_.exchange(true, std::memory_order_acquire))
    throw Error(ErrorKind::kInvalidArgument, "ThreadPool::run: the pool is already running a task");
  task_ = &task;
  if (size_ > 1) {
    running_.store(static_cast<uint32_t>(size_ - 1), std::memory_order_relaxed);
    bool must_wake;
    {
      std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
      must_wake = parked_.load() > 0;
    }
    if (must_wake) wake_.notify_all();
  }
  run_part(0);
  while (true) {
    const uint32_t left = running_.load(std::memory_order_acquire);
    if (left == 0) break;
    wait_while_equal(running_, left);
  }
  sleeps_.store(0, std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  barrier_arrived_.store(0, std::memory_order_relaxed);
  const std::exception_ptr error = std::exchange(error_, nullptr);
  active_.store(false, std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

void ThreadPool::barrier() {
  if (size_ == 1) return;
  // The phase comes first: if it is already the one that a failing thread made, so is failed_.
  const uint32_t phase = barrier_phase_.load(std::memory_order_acquire);
  if (failed_.load(std::memory_order_acquire)) throw OtherThreadFailed();
  if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 ==
      static_cast<uint32_t>(size_)) {
    barrier_arrived_.store(0, std::memory_order_relaxed);
    barrier_phase_.fetch_add(1, std::memory_order_release);
    notify(barrier_phase_);
  } else {
    wait_while_equal(barrier_phase_, phase);
    if (failed_.load(std::memory_order_acquire)) throw OtherThreadFailed();
  }
}

void ThreadPool::parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  run([&](const Worker& worker) {
    const Range part = split(n, 1, worker);
    if (part.begin < part.end) body(part.begin, part.end);
  });
}

}  // namespace whit
