// The one exception type. A message says what was asked, what is wrong, where, and what to do about
// it.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace whit {

enum class ErrorKind {
  kInvalidArgument,  // a flag, a request field or an API argument is out of range
  kInvalidData,      // a file's content contradicts its format, its config or itself
  kNotFound,         // a file, tensor or key that is needed is not there
  kUnsupported,      // well-formed, but not something this build can do
  kIo,               // the operating system refused (disk full, permission, …)
  kInterrupted,      // the user pressed Ctrl-C
  kResource,         // a stated limit (memory, steps, depth, length) would be passed
};

// Messages quote what files and requests say: control characters, which could cut a message short
// or steer a terminal, become '?'; line ends and tabs stay.
std::string printable(std::string text);

class Error : public std::runtime_error {
 public:
  template <typename... Args>
  Error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(printable(fmt::format(format, std::forward<Args>(args)...))),
        kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

// Process exit code of the command line for an error of this kind: 2 usage, 3 data, 4 I/O, 5
// resource, 130 interrupted.
int exit_code(ErrorKind kind);

}  // namespace whit

// For invariants of our own code, never reachable from input.
#ifdef NDEBUG
#define WHIT_DCHECK(condition) ((void)0)
#else
#include <cstdlib>
#define WHIT_DCHECK(condition) ((condition) ? (void)0 : std::abort())
#endif
