#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/error.h"

namespace whit {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

TEST(SplitTest, parts_cover_the_range_once_in_order_and_in_units) {
  for (const int64_t n : {0, 1, 7, 64, 65, 1000})
    for (const int64_t unit : {1, 8, 64})
      for (const int count : {1, 2, 3, 7, 64}) {
        int64_t at = 0, largest = 0, smallest = n;
        for (int index = 0; index < count; ++index) {
          const Range part = split(n, unit, Worker{index, count});
          EXPECT_EQ(part.begin, at);
          EXPECT_GE(part.end, part.begin);
          EXPECT_TRUE(part.end % unit == 0 || part.end == n);
          at = part.end;
          largest = std::max(largest, part.end - part.begin);
          smallest = std::min(smallest, part.end - part.begin);
        }
        EXPECT_EQ(at, n);
        EXPECT_LE(largest - smallest, 2 * unit);
      }
}

TEST(ThreadPoolTest, every_worker_runs_once_in_every_run) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.size(), threads);
    std::vector<int> calls(threads, 0);
    const auto caller = std::this_thread::get_id();
    for (int round = 1; round <= 200; ++round) {
      pool.run([&](const Worker& worker) {
        EXPECT_EQ(worker.count, threads);
        EXPECT_EQ(worker.index == 0, std::this_thread::get_id() == caller);
        ++calls[worker.index];
      });
      EXPECT_EQ(std::count(calls.begin(), calls.end(), round), threads);
    }
  }
}

TEST(ThreadPoolTest, zero_threads_means_one_per_available_cpu) {
  EXPECT_EQ(ThreadPool(0).size(), std::min(available_cpus(), ThreadPool::kMaxThreads));
  EXPECT_GE(available_cpus(), 1);
}

TEST(ThreadPoolTest, refuses_a_negative_or_absurd_number_of_threads) {
  for (const int threads : {-1, ThreadPool::kMaxThreads + 1, 1 << 30}) {
    try {
      ThreadPool pool(threads);
      FAIL() << threads;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
    }
  }
}

TEST(ThreadPoolTest, a_barrier_separates_phases_and_can_be_used_again_at_once) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    std::vector<int64_t> values(threads, 0);
    bool wrong = false;
    pool.run([&](const Worker& worker) {
      for (int64_t phase = 1; phase <= 100; ++phase) {
        values[worker.index] = phase;
        pool.barrier();
        for (const int64_t value : values)
          if (value != phase) wrong = true;
        pool.barrier();
      }
    });
    EXPECT_FALSE(wrong);
  }
}

TEST(ThreadPoolTest, what_a_task_wrote_is_visible_to_the_caller_and_to_the_next_task) {
  ThreadPool pool(4);
  std::vector<int> written(4, 0), read(4, 0);
  for (int round = 1; round <= 100; ++round) {
    pool.run([&](const Worker& worker) { written[worker.index] = round; });
    EXPECT_EQ(written, std::vector<int>(4, round));
    pool.run([&](const Worker& worker) { read[worker.index] = written[(worker.index + 1) % 4]; });
    EXPECT_EQ(read, std::vector<int>(4, round));
  }
}

TEST(ThreadPoolTest, an_exception_of_any_worker_reaches_the_caller_and_the_pool_goes_on) {
  for (const int threads : {1, 2, 6}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 10; ++round)
      for (int thrower = 0; thrower < threads; ++thrower) {
        std::atomic<int> finished{0};
        try {
          pool.run([&](const Worker& worker) {
            if (worker.index == thrower) throw std::runtime_error(std::to_string(thrower));
            ++finished;
          });
          FAIL() << "no exception";
        } catch (const std::runtime_error& error) {
          EXPECT_EQ(error.what(), std::to_string(thrower));
        }
        EXPECT_EQ(finished, threads - 1);
      }
  }
}

TEST(ThreadPoolTest, a_worker_that_throws_releases_those_who_wait_for_it_at_a_barrier) {
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 12; ++round) {
      const int thrower = round % threads, at = round % 4;
      std::vector<int> phases(threads, 0);
      EXPECT_THROW(pool.run([&](const Worker& worker) {
        for (int phase = 0; phase < 4; ++phase) {
          if (worker.index == thrower && phase == at) throw std::logic_error("disk full");
          pool.barrier();
          ++phases[worker.index];
        }
      }),
                   std::logic_error);
      for (const int phase : phases) EXPECT_LE(phase, at);
      // Barriers work again.
      std::atomic<int> sum{0};
      pool.run([&](const Worker& worker) {
        sum += worker.index;
        pool.barrier();
        EXPECT_EQ(sum, threads * (threads - 1) / 2);
      });
    }
  }
}

TEST(ThreadPoolTest, several_workers_may_throw_at_once) {
  ThreadPool pool(6);
  for (int round = 0; round < 50; ++round)
    EXPECT_THROW(pool.run([](const Worker& worker) {
      throw std::runtime_error(std::to_string(worker.index));
    }),
                 std::runtime_error);
}

TEST(ThreadPoolTest, a_run_inside_a_task_is_refused_instead_of_hanging) {
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    EXPECT_THROW(pool.run([&](const Worker& worker) {
      if (worker.index == 0) pool.run([](const Worker&) {});
    }),
                 Error);
    std::atomic<int> calls{0};
    pool.run([&](const Worker&) { ++calls; });
    EXPECT_EQ(calls, threads);
  }
}

TEST(ThreadPoolTest, parallel_for_visits_every_element_once) {
  ThreadPool pool(3);
  for (const int64_t n : {0, 1, 2, 3, 1000}) {
    std::vector<int> visits(n, 0);
    pool.parallel_for(n, [&](int64_t begin, int64_t end) {
      EXPECT_LT(begin, end);
      for (int64_t i = begin; i < end; ++i) ++visits[i];
    });
    EXPECT_EQ(std::count(visits.begin(), visits.end(), 1), n);
  }
}

TEST(ThreadPoolTest, workers_wake_from_parking) {
  ThreadPool pool(3);
  std::atomic<int> calls{0};
  for (int round = 0; round < 10; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than they spin
    pool.run([&](const Worker&) { ++calls; });
  }
  EXPECT_EQ(calls, 30);
}

TEST(ThreadPoolTest, idle_workers_use_no_cpu_time) {
  ThreadPool pool(2);
  pool.run([](const Worker&) {});
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const std::clock_t before = std::clock();  // of the whole process
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.1);
}

TEST(ThreadPoolTest, who_waits_long_for_another_thread_leaves_the_cpu) {
  // Either thread may be the late one; spinning would take the whole time that it sleeps.
  for (const int late : {0, 1}) {
    ThreadPool pool(2);
    const std::clock_t before = std::clock();  // of the whole process
    pool.run([&](const Worker& worker) {
      if (worker.index == late) std::this_thread::sleep_for(std::chrono::milliseconds(60));
      pool.barrier();
      if (worker.index == late) std::this_thread::sleep_for(std::chrono::milliseconds(60));
    });
    EXPECT_LT(static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC, 0.03) << late;
  }
}

TEST(ThreadPoolTest, can_be_made_and_destroyed_many_times_used_or_not) {
  for (int round = 0; round < 20; ++round) {
    ThreadPool unused(4);
    ThreadPool used(3);
    used.run([](const Worker&) {});
  }
}

TEST(ThreadPoolTest, more_threads_than_cpus_are_slower_but_not_stuck) {
  // A waiting thread that only gives up its CPU at a scheduler tick would take about 4 ms · threads
  // a barrier: 16 s here.
  const int threads = 8 * available_cpus();
  if (threads > 128) GTEST_SKIP() << "too many CPUs to oversubscribe in a short test";
  constexpr int kBarriers = 250;
  ThreadPool pool(threads);
  const auto start = Clock::now();
  pool.run([&](const Worker&) {
    for (int i = 0; i < kBarriers; ++i) pool.barrier();
  });
  EXPECT_LT(seconds_since(start), 4.0) << threads << " threads";
}

TEST(ThreadPoolTest, two_pools_work_at_the_same_time) {
  std::atomic<int64_t> total{0};
  const auto use = [&] {
    ThreadPool pool(0);
    for (int round = 0; round < 20; ++round)
      pool.run([&](const Worker&) {
        for (int i = 0; i < 5; ++i) {
          ++total;
          pool.barrier();
        }
      });
  };
  const auto start = Clock::now();
  std::thread other(use);
  use();
  other.join();
  EXPECT_EQ(total, 2 * 20 * 5 * std::min(available_cpus(), ThreadPool::kMaxThreads));
  EXPECT_LT(seconds_since(start), 10.0);
}

class CgroupTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() /
            ("whit_cgroup_" + std::to_string(::getpid()) + "_" +
             testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(root_);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  std::filesystem::path root_;
};

TEST_F(CgroupTest, the_least_quota_up_to_the_root_counts) {
  write("cpu.max", "max 100000\n");
  write("a/cpu.max", "150000 100000\n");
  write("a/b/cpu.max", "400000 100000\n");
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_, "0::/a/b\n"), 1.5);
  EXPECT_TRUE(std::isinf(cgroup_cpu_quota(root_, "0::/\n")));
}

TEST_F(CgroupTest, a_path_outside_of_the_mount_leaves_the_quota_of_its_root) {
  write("cpu.max", "250000 100000\n");
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_, "0::/docker/0123456789abcdef\n"), 2.5);
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_, "0::/../outside\n"), 2.5);
}

TEST_F(CgroupTest, version_1_is_read_from_the_cpu_controller) {
  write("cpu/job/cpu.cfs_quota_us", "300000\n");
  write("cpu/job/cpu.cfs_period_us", "100000\n");
  write("cpu/cpu.cfs_quota_us", "-1\n");
  write("cpu/cpu.cfs_period_us", "100000\n");
  const char* self = "12:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/job\n0::/job\n";
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_, self), 3.0);
}

TEST_F(CgroupTest, nonsense_means_no_quota) {
  write("cpu.max", "zero 100000\n");
  for (const char* self : {"", "\n\n", "garbage", "0:", "0::", "0::/", "::::"})
    EXPECT_TRUE(std::isinf(cgroup_cpu_quota(root_, self))) << self;
  write("cpu.max", "");
  EXPECT_TRUE(std::isinf(cgroup_cpu_quota(root_, "0::/")));
  EXPECT_TRUE(std::isinf(cgroup_cpu_quota(root_ / "missing", "0::/a")));
}

}  // namespace
}  // namespace whit
