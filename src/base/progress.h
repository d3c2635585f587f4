// What long work tells the user while it runs, and how the user stops it.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace whit {

// One line on stderr, rewritten in place with share, rate of the work, time left and resident
// memory. Silent where stderr is not a terminal.
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
