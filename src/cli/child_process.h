// This program run again as a child: figures of a process that did nothing else.
#pragma once

#include <string>
#include <vector>

namespace whit::cli {

// Runs `whit arguments…` and returns what it wrote to stdout; stderr is shared. Throws kInterrupted
// after Ctrl-C (the child is ended), kIo where it cannot be started or fails.
std::string run_self(const std::vector<std::string>& arguments);

}  // namespace whit::cli
