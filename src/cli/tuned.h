// What `whit bench --tune` has stored, in place of options that the user left open.
#pragma once

#include "cli/common.h"

namespace whit::cli {

// --isa and --threads as given; where they are not, as stored for `model`, if it is an engine that
// was tuned on this machine. A stored choice that cannot be used is a warning on stderr.
MachineOptions tuned(MachineOptions options, const std::string& model);

}  // namespace whit::cli
