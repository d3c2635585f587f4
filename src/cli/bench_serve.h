// whit bench serve: load on a running server.
#pragma once

#include <CLI/CLI.hpp>

#include "cli/command.h"

namespace whit::cli {

Action add_bench_serve(CLI::App& app);

}  // namespace whit::cli
