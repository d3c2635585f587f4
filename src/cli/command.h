// The program's commands, one file each. An add_… function declares a command's options on `app`
// and returns what runs it once they are parsed; the action's result is the exit status.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace whit::cli {

using Action = std::function<int()>;

Action add_quantize(CLI::App& app);
Action add_build(CLI::App& app);
Action add_calibrate(CLI::App& app);
Action add_run(CLI::App& app);
Action add_chat(CLI::App& app);
Action add_eval(CLI::App& app);
Action add_serve(CLI::App& app);
Action add_bench(CLI::App& app);
Action add_compare(CLI::App& app);
Action add_inspect(CLI::App& app);
Action add_convert(CLI::App& app);
Action add_tokenize(CLI::App& app);
Action add_doctor(CLI::App& app);

}  // namespace whit::cli
