// Long work called from Python: without the interpreter's lock, with progress reported to a Python
// callable, and ended by Ctrl-C.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>

#include "base/progress.h"

namespace whit::python {

namespace nb = nanobind;

// While it lives, the calling thread does not hold the interpreter's lock.
class Job {
 public:
  // `on_progress` (title, done, total, detail, ended) or None.
  explicit Job(nb::object on_progress)
      : on_progress_(std::move(on_progress)),
        scope_([this](const ProgressState& state) { report(state); }, [this] { check_signals(); }) {
  }

 private:
  using Clock = std::chrono::steady_clock;
  // Of looking for signals and of drawing: both take the interpreter's lock from other threads.
  static constexpr std::chrono::milliseconds kInterval{50};

  void report(const ProgressState& state) {
    const auto now = Clock::now();
    const bool edge = state.ended || state.done == 0 || state.done == state.total;
    if (!edge && now - last_report_ < kInterval) return;
    last_report_ = now;
    const nb::gil_scoped_acquire lock;
    if (on_progress_.is_none()) return;
    on_progress_(nb::str(state.title.data(), state.title.size()), state.done, state.total,
                 nb::str(state.detail.data(), state.detail.size()), state.ended);
  }

  // Python's own handler has only noted the signal; this runs it, in the main thread alone.
  void check_signals() {
    const auto now = Clock::now();
    if (now - last_check_ < kInterval) return;
    last_check_ = now;
    const nb::gil_scoped_acquire lock;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }

  nb::object on_progress_;  // released after the lock is back
  Clock::time_point last_report_, last_check_;
  JobScope scope_;
  nb::gil_scoped_release released_;
};

}  // namespace whit::python
