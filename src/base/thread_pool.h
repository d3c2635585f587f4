// A persistent pool of pinned threads that run one task together (fork-join), with a barrier inside
// the task.
//
// A forward pass is one run(): every thread walks the same node list and meets the others at
// barrier(). Waiting is spinning (a futex round trip costs more than a layer of a small model), but
// only for about as long as such a round trip takes: whoever is awaited longer has lost its CPU to
// other work, and the waiting thread sleeps until it comes. When that happens repeatedly in a task,
// or the pool has more threads than the process may use CPUs, workers are not bound to CPUs.
#pragma once

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string_view>
#include <thread>
#include <vector>

namespace whit {

// What a kernel knows of the threads that run it: it does part `index` of `count` equal parts.
struct Worker {
  int index = 0;
  int count = 1;
};

class ThreadPool {
 public:
  static constexpr int kMaxThreads = 1024;

  // threads ≥ 1 counts the caller; 0 means one per CPU that this process may use (affinity and
  // cgroup quota). Throws kInvalidArgument outside 0 … kMaxThreads and kResource when the system
  // gives no more threads.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }

  // Runs task on every thread, the caller being worker 0, and returns when all are done. If any of
  // them throws, the others are released from the barriers at which they wait for it (barrier()
  // throws there), and the first exception is rethrown here; the pool stays usable. Throws
  // kInvalidArgument when called inside a task or by two threads at once.
  void run(const std::function<void(const Worker&)>& task);

  // Inside a task only: returns when all threads of the pool have called it.
  void barrier();

  // Splits [0, n) into contiguous parts, one per thread, and runs body(begin, end) on each part
  // that is not empty.
  void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& body);

 private:
  void worker_loop(int index);
  void run_part(int index);
  void wait_while_equal(const std::atomic<uint32_t>& word, uint32_t value);
  void notify(const std::atomic<uint32_t>& word);  // after a change of the word
  void pin();
  void unpin();
  void stop_and_join();

  int size_;
  bool oversubscribed_;
  std::vector<std::thread> threads_;
  const std::function<void(const Worker&)>* task_ = nullptr;
  std::atomic<bool> active_{false};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<uint32_t> running_{0};
  alignas(64) std::atomic<uint32_t> barrier_arrived_{0};
  alignas(64) std::atomic<uint32_t> barrier_phase_{0};
  std::atomic<bool> failed_{
      false};  // of the running task; read by every thread that waits at a barrier
  alignas(64) std::atomic<uint32_t> parked_{0};
  std::atomic<bool> stop_{false};
  std::atomic<uint32_t> sleepers_{0};            // in wait_while_equal
  alignas(64) std::atomic<uint32_t> sleeps_{0};  // of the running task
  std::atomic<bool> pinned_{false};
  cpu_set_t allowed_;  // where workers may run once they are not pinned
  std::mutex mutex_;
  std::condition_variable wake_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
};

// CPUs this process may use: the affinity mask, lowered by the cgroup's CPU quota.
int available_cpus();

// CPUs that control groups grant: the least quota between the process's group and the root,
// infinity where there is none.
//   root         where the hierarchy is mounted, "/sys/fs/cgroup"
//   self_cgroup  the text of /proc/self/cgroup: "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1)
double cgroup_cpu_quota(const std::filesystem::path& root, std::string_view self_cgroup);

// The contiguous part of [0, n) that belongs to `worker`, in multiples of `unit`.
struct Range {
  int64_t begin, end;
};
inline Range split(int64_t n, int64_t unit, const Worker& worker) {
  const int64_t units = (n + unit - 1) / unit;
  const int64_t begin = units * worker.index / worker.count * unit;
  const int64_t end = units * (worker.index + 1) / worker.count * unit;
  return {begin < n ? begin : n, end < n ? end : n};
}

}  // namespace whit
