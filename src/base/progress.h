// What long work tells the user while it runs, and how the user stops it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace whit {

// How far a job is.
struct ProgressState {
  std::string_view title;
  int64_t done = 0, total = 0;
  std::string_view detail;
  bool ended = false;  // the last report of this title
};

// A program that embeds this library: while a JobScope lives, the jobs of its thread report to
// `on_progress` (where it is given) and not on stderr, and every check_interrupt() of that thread
// calls `check`, which throws to end the job. Scopes nest; the innermost one counts.
class JobScope {
 public:
  JobScope(std::function<void(const ProgressState&)> on_progress, std::function<void()> check);
  ~JobScope();
  JobScope(const JobScope&) = delete;
  JobScope& operator=(const JobScope&) = delete;

 private:
  friend class Progress;
  friend void check_interrupt();
  std::function<void(const ProgressState&)> on_progress_;
  std::function<void()> check_;
  JobScope* outer_;
};

// One line on stderr, rewritten in place with share, rate of the work, time left and resident
// memory. Silent where stderr is not a terminal. Inside a JobScope: reports to it.
class Progress {
 public:
  Progress(std::string title, int64_t total);
  ~Progress();  // ends the line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `done` of `total` units; `detail` is shown behind them. Also the place where an interruption is
  // noticed: throws Error(kInterrupted) after request_interrupt().
  void update(int64_t done, std::string_view detail = {});

 private:
  std::string title_;
  int64_t total_;
  int64_t done_ = 0;
  bool enabled_;
  std::chrono::steady_clock::time_point start_, last_;
};

// Ctrl-C. install_interrupt_handler makes the first SIGINT or SIGTERM a request that
// check_interrupt turns into Error(kInterrupted); a second one ends the process at once.
void install_interrupt_handler();
void request_interrupt();
void clear_interrupt();  // for a program that goes on after an interrupted job
void check_interrupt();

// Peak resident set of this process so far, and the current one, in bytes.
int64_t peak_memory_bytes();
int64_t current_memory_bytes();

std::string format_bytes(double bytes);      // "84.8 MB"
std::string format_seconds(double seconds);  // "1:05"

}  // namespace whit
