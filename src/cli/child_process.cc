#include "cli/child_process.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "base/error.h"
#include "base/progress.h"

extern char** environ;

namespace whit::cli {
namespace {

// The child; ended and reaped when it goes out of scope.
class Child {
 public:
  Child(const std::vector<std::string>& arguments, int output) {
    std::vector<char*> argv;
    static char program[] = "whit";
    argv.push_back(program);
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
    const int code =
        ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    if (code != 0) {
      pid_ = -1;
      throw Error(ErrorKind::kIo, "cannot start this program again to measure with: {}",
                  std::strerror(code));
    }
  }
  ~Child() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGTERM);
    wait();
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
    return status;
  }

 private:
  pid_t pid_ = -1;
};

struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() {
    if (::pipe2(ends, O_CLOEXEC) != 0)
      throw Error(ErrorKind::kIo, "cannot make a pipe: {}", std::strerror(errno));
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  void close_end(int end) {
    if (ends[end] >= 0) ::close(ends[end]);
    ends[end] = -1;
  }
};

}  // namespace

std::string run_self(const std::vector<std::string>& arguments) {
  Pipe pipe;
  Child child(arguments, pipe.ends[1]);
  pipe.close_end(1);
  std::string output;
  char buffer[4096];
  while (true) {
    const ssize_t got = ::read(pipe.ends[0], buffer, sizeof(buffer));
    check_interrupt();
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    output.append(buffer, static_cast<size_t>(got));
  }
  const int status = child.wait();
  check_interrupt();
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    throw Error(ErrorKind::kIo, "'whit {}' failed (see above)",
                arguments.empty() ? "" : arguments.front());
  return output;
}

}  // namespace whit::cli
