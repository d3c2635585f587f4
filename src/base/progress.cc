#include "base/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <fstream>

#include "base/error.h"

namespace whit {
namespace {

std::atomic<bool> interrupted{false};
thread_local JobScope* job_scope = nullptr;

void on_signal(int) {
  if (interrupted.exchange(true)) ::_exit(130);
}

}  // namespace

JobScope::JobScope(std::function<void(const ProgressState&)> on_progress,
                   std::function<void()> check)
    : on_progress_(std::move(on_progress)), check_(std::move(check)), outer_(job_scope) {
  job_scope = this;
}
JobScope::~JobScope() { job_scope = outer_; }

Progress::Progress(std::string title, int64_t total)
    : title_(std::move(title)),
      total_(total),
      enabled_(::isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {
  update(0);
}

Progress::~Progress() {
  if (job_scope != nullptr && job_scope->on_progress_) {
    try {
      job_scope->on_progress_(
          {.title = title_, .done = done_, .total = total_, .detail = {}, .ended = true});
    } catch (...) {  // a display that fails at its end must not end the process
    }
    return;
  }
  if (!enabled_) return;
  fmt::print(stderr, "\r\033[K");
  std::fflush(stderr);
}

void Progress::update(int64_t done, std::string_view detail) {
  check_interrupt();
  done_ = done;
  if (job_scope != nullptr && job_scope->on_progress_) {
    job_scope->on_progress_({.title = title_, .done = done, .total = total_, .detail = detail});
    return;
  }
  if (!enabled_) return;
  const auto now = std::chrono::steady_clock::now();
  if (done < total_ && done > 0 && now - last_ < std::chrono::milliseconds(100)) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double share = total_ > 0 ? static_cast<double>(done) / static_cast<double>(total_) : 0;
  const std::string left = share > 0 ? format_seconds(elapsed / share - elapsed) : "--";
  fmt::print(stderr, "\r\033[K{} {:3.0f} % {}/{} {} · {} left · {}", title_, 100 * share, done,
             total_, detail, left, format_bytes(static_cast<double>(current_memory_bytes())));
  std::fflush(stderr);
}

void install_interrupt_handler() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

void request_interrupt() { interrupted.store(true); }

void clear_interrupt() { interrupted.store(false); }

void check_interrupt() {
  if (interrupted.load(std::memory_order_relaxed))
    throw Error(ErrorKind::kInterrupted, "interrupted; nothing was written");
  if (job_scope != nullptr && job_scope->check_) job_scope->check_();
}

int64_t peak_memory_bytes() {
  // Not getrusage: its figure is inherited from the process that executed this program.
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("VmHWM:")) return std::strtoll(line.c_str() + 6, nullptr, 10) * 1024;
  return 0;
}

int64_t current_memory_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t pages = 0, resident = 0;
  file >> pages >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

std::string format_bytes(double bytes) {
  const char* units[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) {
    bytes /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string format_seconds(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  return whole >= 3600 ? fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60)
                       : fmt::format("{}:{:02}", whole / 60, whole % 60);
}

}  // namespace whit
