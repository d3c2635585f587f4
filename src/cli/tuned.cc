#include "cli/tuned.h"

#include "api/tuning.h"

namespace whit::cli {

MachineOptions tuned(MachineOptions options, const std::string& model) {
  const bool any_isa = options.isa == "auto", any_threads = options.threads == 0;
  if (options.backend != "cpu" || !(any_isa || any_threads)) return options;
  const auto stored = stored_tuning(model, [](const std::string& warning) {
    fmt::print(stderr, "whit: warning: {}\n", warning);
  });
  if (!stored) return options;
  if (any_isa) options.isa = cpu::name(stored->choice().isa);
  if (any_threads) options.threads = stored->choice().threads;
  return options;
}

}  // namespace whit::cli
